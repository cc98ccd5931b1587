"""One compute thread: tiny models gain nothing from more, and a busy machine makes more of them slow.

`--models-page FILE` writes docs/models.md from the results of the tests that ran.
"""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

# Where there is no GPU, Triton's kernels are interpreted; it looks when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from models_page import write_page

torch.set_num_threads(1)

_FOUND = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--models-page", metavar="FILE", help="write which models are exact, from this run's results")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--models-page") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--models-page needs all results in one process: leave out -n")
    config.stash[_FOUND] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call" and report.passed and report.user_properties:
        item.config.stash[_FOUND].append(dict(report.user_properties))
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    file = session.config.getoption("--models-page")
    if file and exitstatus == 0:
        write_page(Path(file), session.config.stash[_FOUND])
