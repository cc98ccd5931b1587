"""`baton check` finds every scenario equal on models that are batched exactly, and names those that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from baton.cli.main import cli
from baton.core.config import Config
from baton.core.errors import CheckFailed
from baton.core.settings import load_settings
from baton.loader.load import load
from baton.loader.loaded import Loaded
from baton.loader.oracle import Oracle
from baton.loader.selfcheck import alone
from baton.measure.check import DETERMINISTIC, SCENARIOS, SIZE, Outcome, check
from baton.model.attention import Decode, Fill
from baton.model.visibility import Span, Visibility
from families import FAMILIES, Family, bare_model, model_of
from tiny_checkpoint import save_tiny, save_tokenizer


def saved(name: str, folder: Path) -> Path:
    model_of(name).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def loaded_with(folder: Path, oracle: Oracle, dtype: str = "float32", *, native: bool = True) -> tuple[Loaded, Config]:
    config = Config(device="cpu", dtype=dtype, threads="1", compile=native)
    return load(load_settings(config, str(folder), "tiny"), before=oracle), config


def checked(folder: Path, **oracle: int) -> list[Outcome]:
    before = Oracle(answer=oracle.pop("answer", 8), **oracle)  # type: ignore[arg-type]
    loaded, config = loaded_with(folder, before)
    return list(check(loaded, before, config))


@pytest.mark.parametrize("name", ["gemma3", "mamba2", "jamba", "bloom", "phi3_longrope"])
def test_every_scenario_is_equal_and_took_place(name: str, tmp_path: Path) -> None:
    assert name in {family.name for family in FAMILIES}
    outcomes = checked(saved(name, tmp_path))
    assert [outcome.name for outcome in outcomes] == [*(scenario.name for scenario in SCENARIOS), SIZE, DETERMINISTIC]
    assert [outcome.name for outcome in outcomes if not outcome.passed] == []
    assert max(outcome.difference for outcome in outcomes) > 0, "nothing was compared"
    assert [outcome.name for outcome in outcomes if outcome.skipped and outcome.name != "prefix"] == []
    assert all(outcome.tokens >= 5 * 8 for outcome in outcomes if not outcome.skipped)


# Tokens of the mixture that go to another expert than alone, by a near tie, are no difference.
@pytest.mark.parametrize(
    ("family", "quantize"),
    [
        ("gemma3", "int8"),
        ("gemma3", "int4"),
        ("gemma3", "int4:exact"),
        ("qwen3_moe", "int4"),
        ("deepseek_v3", "int4:exact"),
    ],
)
def test_every_scenario_is_equal_with_quantised_weights(family: str, quantize: str, tmp_path: Path) -> None:
    """To the model with the rounded weights; and in a crowd the same bits as alone."""
    config = Config(device="cpu", dtype="float32", threads="2", quantize=quantize)
    oracle = Oracle(answer=8)
    folder = saved(family, tmp_path)
    outcomes = list(check(load(load_settings(config, str(folder), "tiny"), before=oracle), oracle, config))
    assert [outcome.name for outcome in outcomes if not outcome.passed or outcome.skipped] == []
    differences = [outcome.difference for outcome in outcomes if outcome.name not in (SIZE, DETERMINISTIC)]
    assert 0 < max(differences) < {"int8": 1e-3, "int4": 0.08, "int4:exact": 1e-3}[quantize]
    assert {outcome.name: outcome.difference for outcome in outcomes}[DETERMINISTIC] == 0


def test_aligned_rows_are_equal_in_every_scenario_that_aligns_rows(tmp_path: Path) -> None:
    config = Config(device="cpu", dtype="float32", threads="1", shaping="aligned")
    oracle = Oracle(answer=8)
    outcomes = list(
        check(load(load_settings(config, str(saved("gemma3", tmp_path)), "tiny"), before=oracle), oracle, config)
    )
    assert [outcome.name for outcome in outcomes] == [*(scenario.name for scenario in SCENARIOS), SIZE, DETERMINISTIC]
    assert [outcome.name for outcome in outcomes if not outcome.passed] == []
    assert [outcome.name for outcome in outcomes if outcome.skipped] == ["orca", SIZE, DETERMINISTIC]
    assert 0 < max(outcome.difference for outcome in outcomes) <= 1e-4


def test_prompts_go_beyond_each_length_of_the_config_or_it_is_said(tmp_path: Path) -> None:
    model = bare_model(Family("mistral", "mistral", {"sliding_window": 140}))
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    oracle = Oracle(answer=4)
    loaded_with(tmp_path, oracle)
    assert max(len(case.prompt) for case in oracle.long) > 140
    assert any(len(case.prompt) <= 140 < len(case.prompt) + 4 for case in oracle.long), "one crosses it"
    assert oracle.notes == []
    short = Oracle(answer=4, longest=150)
    loaded_with(tmp_path, short)
    assert "no prompt went beyond sliding_window 140: that needs 157 tokens (--longest)" in short.notes


def test_what_is_wrong_from_a_token_on_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Oracle(answer=4)
    loaded, config = loaded_with(saved("llama", tmp_path), before, native=False)
    right = Fill._seen_by

    def wrong(self: Fill, buffer: torch.Tensor, span: Span, look: Visibility) -> torch.Tensor:
        seen = right(self, buffer, span, look)
        return torch.cat([torch.zeros_like(seen[:1]), seen[1:]]) if span.stop > 150 else seen

    monkeypatch.setattr(Fill, "_seen_by", wrong)
    outcomes = {outcome.name: outcome for outcome in check(loaded, before, config)}
    assert [name for name, outcome in outcomes.items() if not outcome.passed] == ["long"]
    assert outcomes["long"].difference > 1e-3


def test_what_depends_on_the_rectangles_size_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Oracle(answer=4)
    loaded, config = loaded_with(saved("llama", tmp_path), before, native=False)
    right = Decode.attend

    def wrong(self: Decode, *args: Any) -> torch.Tensor:
        return right(self, *args) * (1 + 1e-6 * (self.rectangle.columns > 192))

    monkeypatch.setattr(Decode, "attend", wrong)
    outcomes = {outcome.name: outcome for outcome in check(loaded, before, config)}
    assert [name for name, outcome in outcomes.items() if not outcome.passed] == [SIZE]


def test_a_wrong_mask_in_chunked_prompts_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Oracle(answer=8)
    loaded, config = loaded_with(saved("llama", tmp_path), before, native=False)
    right = Fill._mask

    def wrong(self: Fill, span: Span, look: Visibility) -> torch.Tensor | None:
        mask = right(self, span, look)
        if mask is None:
            return None
        mask = mask.clone()
        mask[:, 0] = False
        return mask

    monkeypatch.setattr(Fill, "_mask", wrong)
    outcomes = {outcome.name: outcome for outcome in check(loaded, before, config)}
    assert not outcomes["chunked"].passed
    assert outcomes["chunked"].difference > 1e-3
    assert outcomes["chunked"].diverged is not None
    assert outcomes["orca"].passed, "whole prompts do not use that mask"


def run(*arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(cli, ["check", *arguments, "--json", "--threads", "1", "--tokens", "6"])
    if isinstance(result.exception, CheckFailed):
        return result.exception.exit_status, json.loads(result.stdout)
    assert result.exception is None, result.exception
    return result.exit_code, json.loads(result.stdout)


def test_the_command_says_so_and_ends_with_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(save_tiny(tmp_path))
    status, told = run(folder)
    assert (status, told["passed"], told["way"], told["dtype"]) == (0, True, "rectangle", "float32")
    assert len(told["scenarios"]) == len(SCENARIOS) + 2
    monkeypatch.setattr("baton.loader.oracle.TOLERANCE", {torch.float32: -1.0})
    status, told = run(folder)
    assert (status, told["passed"]) == (1, False)


def test_bfloat16_has_the_bound_of_its_own_noise(tmp_path: Path) -> None:
    before = Oracle(answer=6)
    loaded, config = loaded_with(saved("llama", tmp_path), before, "bfloat16")
    outcomes = list(check(loaded, before, config))
    assert [outcome.name for outcome in outcomes if not outcome.passed] == []
    # How noisy torch's bfloat16 is depends on the processor; the bound is four times as far as it is from float32 here.
    exact = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).float()
    noise = 0.0
    for case in before.cases:
        text = torch.tensor([*case.prompt, *case.tokens[:-1]])
        right = alone(exact, text, len(case.prompt))
        noise = max(noise, float((case.logits - right).abs().max() / right.abs().max()))
    assert 1e-4 < max(outcome.difference for outcome in outcomes) < before.tolerance
    assert before.tolerance == pytest.approx(4 * noise, rel=1e-3)


def test_a_short_context_is_checked_with_short_answers(tmp_path: Path) -> None:
    model = bare_model(Family("llama", "llama", {"max_position_embeddings": 16}))
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    outcomes = checked(tmp_path, answer=16)
    assert [outcome.name for outcome in outcomes if not outcome.passed] == []
    assert outcomes[0].tokens > 0
