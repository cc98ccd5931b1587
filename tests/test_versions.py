"""Which versions of transformers the exactness tests are run on beside the installed one."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import exact_on_versions


def answered(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout=text))


def test_the_oldest_that_is_taken_and_the_newest_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, "transformers (6.0.0)\nAvailable versions: 6.0.0, 5.99.1, 5.100.0, 5.17.1, 5.17.0, 4.2.0\n")
    assert exact_on_versions.releases_to_try() == ["5.17.0", "5.100.0"]


def test_the_installed_one_is_left_to_the_tests_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, f"Available versions: {version('transformers')}, 5.17.0\n")
    assert exact_on_versions.releases_to_try() == ["5.17.0"]


def test_without_a_network_it_says_so_and_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered(monkeypatch, "")
    monkeypatch.setattr(sys, "argv", ["exact_on_versions.py"])
    exact_on_versions.main()
    assert "no network" in capsys.readouterr().out


def test_what_failed_is_named_by_family(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    came = {"batch[llama-baton]": "passed", "batch[mamba-baton]": "failure", "batch[phi3-baton]": "skipped"}
    monkeypatch.setattr(exact_on_versions, "results_of", lambda one: came)
    monkeypatch.setattr(sys, "argv", ["exact_on_versions.py", "5.99.0"])
    with pytest.raises(SystemExit):
        exact_on_versions.main()
    told = capsys.readouterr().out
    assert "transformers 5.99.0" in told and "3 tests, 1 failed, 1 skipped" in told
    assert "failure batch[mamba-baton]" in told and "llama" not in told


def test_only_packages_that_are_not_here_are_installed_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["pytest>=1", "pytest<1", "no-such-package", "other; extra == 'more'", "old; python_version < '3'"]
    monkeypatch.setattr(exact_on_versions, "distributions", lambda path: [SimpleNamespace(requires=needed)])
    assert exact_on_versions.not_here("folder") == ["pytest<1", "no-such-package"]
