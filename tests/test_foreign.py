"""What users of other servers type: it is explained in one line."""

from __future__ import annotations

import pytest

from baton.cli.foreign import check_address, hint
from baton.core.errors import SettingError


@pytest.mark.parametrize(
    ("arguments", "unknown", "meant"),
    [
        (["serve", "m", "--max-num-seqs", "8"], "--max-num-seqs", "--max-batch-size"),
        (["serve", "--model", "m"], "--model", "baton serve MODEL"),
        (["serve", "m", "--gpu-memory-utilization=0.9"], "--gpu-memory-utilization", "--kv-memory"),
        (["serve", "m", "--tensor-parallel-size", "2"], "--tensor-parallel-size", "one device"),
        (["serve", "-m", "m"], "-m", "baton serve MODEL"),
        (["serve", "m", "-c", "4096"], "-c", "--max-model-len"),
        (["serve", "m", "-np", "4"], "-n", "--max-batch-size"),
    ],
)
def test_foreign_flags_are_explained(arguments: list[str], unknown: str, meant: str) -> None:
    assert meant in hint(arguments, unknown)


def test_what_nobody_knows_is_not_explained() -> None:
    assert hint(["serve", "--magic"], "--magic") == ""


@pytest.mark.parametrize("text", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "my-host:8000/v1"])
def test_an_address_without_a_scheme_is_asked_about(text: str) -> None:
    with pytest.raises(SettingError, match=f"did you mean http://{text.replace('[', '.').replace(']', '.')}"):
        check_address(text)


@pytest.mark.parametrize("text", ["", "Qwen/Qwen3-0.6B", "./folder", "http://127.0.0.1:8000", "model"])
def test_models_are_no_addresses(text: str) -> None:
    check_address(text)
