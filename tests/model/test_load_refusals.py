"""Models that cannot be batched exactly are refused by name, with the reason, and never crash the load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from baton.core.errors import LoadError
from baton.loader.choose import choose
from families import REFUSED, bare_model


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_kind_that_cannot_be_exact_is_refused_with_its_reason(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    family, reason = REFUSED[name]
    with pytest.raises(LoadError, match=reason) as caught:
        choose(bare_model(family))
    record_property("refused", name)
    record_property("reason", caught.value.message)
