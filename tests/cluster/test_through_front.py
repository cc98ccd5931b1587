"""A part of the server's tests through a front. All: `pytest tests/server --through-front wire` (CONTRIBUTING.md)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import baton.server.app
import through_front
from server import test_chat, test_completions, test_logprobs, test_stream, test_telling
from server.conftest import base_url, http, loop

__all__ = ["base_url", "http", "loop"]
PART = (test_chat, test_completions, test_logprobs, test_stream, test_telling)
LEAST_ASKED = 50
ran = 0

for module in PART:
    of_module = {name: value for name, value in vars(module).items() if name.startswith("test_") and callable(value)}
    globals().update({f"{name}__{module.__name__.rpartition('_')[2]}": value for name, value in of_module.items()})


@pytest.fixture(scope="module", autouse=True)
def through(request: pytest.FixtureRequest) -> Iterator[None]:
    """All servers of this module stand over a front. That they ask it is checked if all its tests were run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baton.server.app, "create_app", through_front.over_a_front(baton.server.app.create_app))
        through_front.taken()
        yield
    if not request.config.option.keyword and ran > LEAST_ASKED:
        assert through_front.taken() >= LEAST_ASKED


@pytest.fixture(autouse=True)
def one_more() -> None:
    global ran
    ran += 1


def test_these_are_many() -> None:
    assert sum(name.startswith("test_") for name in globals()) > 45
