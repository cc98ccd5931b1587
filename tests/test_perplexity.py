"""`baton check --perplexity`: the model alone is scored as by hand, and the engine as the model alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.cli.main import cli
from baton.core.errors import SettingError
from baton.loader.scores import Alone, Scores, cut
from baton.measure.perplexity import compared
from tiny_checkpoint import save_tiny

WORDS = "The cat sat on the mat; then 17 + 25 = 42 birds came, and nobody knew why. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(WORDS * 4, encoding="utf-8")
    return file


def scored(folder: Path, text: Path, *more: str) -> dict[str, Any]:
    ran = CliRunner().invoke(
        cli,
        ["check", str(folder), "--device", "cpu", "--perplexity", str(text), "--json", *more],
        catch_exceptions=False,
    )
    return dict(json.loads(ran.stdout))


def by_hand(folder: Path, text: Path, window: int) -> tuple[float, int]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(text.read_text())["input_ids"]
    total, count = 0.0, 0
    for at in range(0, len(tokens), window):
        ids = torch.tensor([tokens[at : at + window]])
        if ids.shape[1] > 1:
            with torch.no_grad():
                total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    return math.exp(total / count), count


@pytest.mark.parametrize("window", [2, 7, 40])
def test_the_model_alone_is_scored_as_by_hand_and_the_engine_as_the_model(
    folder: Path, text: Path, window: int
) -> None:
    result = scored(folder, text, "--window", str(window))
    expected, count = by_hand(folder, text, window)
    assert result["tokens"] == count
    assert result["alone"] == pytest.approx(expected, rel=1e-5)
    assert result["served"] == pytest.approx(expected, rel=1e-5) and result["same_likeliest"] == 1
    assert result["ratio"] == pytest.approx(result["served"] / result["alone"], rel=1e-9)


def test_rounded_weights_are_held_against_the_models_own(folder: Path, text: Path) -> None:
    own = scored(folder, text)
    ratios = []
    for quantize in ("int8", "int4"):
        result = scored(folder, text, "--quantize", quantize)
        assert result["alone"] == pytest.approx(own["alone"], rel=1e-6) and result["quantize"] == quantize
        ratios.append(abs(math.log(result["ratio"])))
    assert 1e-7 < ratios[0] < ratios[1] < 0.5


def test_a_window_is_no_longer_than_the_context(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    most = model.config.max_position_embeddings - 1
    told: list[int] = []
    alone = Alone(
        "", 10_000, lambda text: [1 + at % 50 for at in range(most + 5)], on_begin=told.append, tell=told.append
    )
    alone(model)
    assert [len(window) for window in alone.windows] == [most, 5]
    assert told == [most + 3, most - 1, 4] and len(alone.scores.logprobs) == len(alone.scores.likeliest) == most + 3
    assert cut(range(7), 3) == [(0, 1, 2), (3, 4, 5)]


def test_files_that_are_no_text_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    for content, said in ((b"\xff\xfe", "no text in UTF-8"), (b"", "less than two tokens")):
        file = tmp_path / "text"
        file.write_bytes(content)
        ran = CliRunner().invoke(cli, ["check", str(folder), "--device", "cpu", "--perplexity", str(file)])
        assert isinstance(ran.exception, SettingError) and said in ran.exception.message
    assert CliRunner().invoke(cli, ["check", str(folder), "--perplexity", str(tmp_path / "none")]).exit_code == 2


def test_the_bound_of_the_ratio() -> None:
    same = compared(Scores([-1.0, -2.0], [3, 4]), Scores([-1.0, -2.0], [3, 5]))
    assert (same.ratio, same.ratio_bound, same.same_likeliest) == (1.0, 0.0, 0.5)
    worse = compared(Scores([-1.0] * 100, [0] * 100), Scores([-1.1, -1.3] * 50, [0] * 100))
    assert worse.ratio == pytest.approx(math.exp(0.2))
    assert worse.ratio_bound == pytest.approx(math.exp(0.2) * math.expm1(1.96 * 0.1 / math.sqrt(99)), rel=1e-6)
