"""Whatever is done for one row and raises is the end of that row alone, on every way that a row is drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from baton.batch import feeder
from baton.core.query import Query, State
from baton.model.execution import PrefillPlacement
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.run_to_completion import RunToCompletion
from baton.sampling import sampler as sample
from baton.sampling.sampler import Sampler
from families import model_of
from random_batch import RandomBatch, query_of, random_batch

BAD, BAD_BEST = 666, 7
WAYS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "baton": (Baton, {}),
    "orca": (Orca, {}),
    "run_to_completion": (RunToCompletion, {}),
    "ahead": (Baton, {"ahead": True}),
    "fused": (Baton, {"ahead": True, "prompts": PrefillPlacement.FUSED}),
}


def unless_bad(right: Callable[..., Any], bad: Callable[..., bool]) -> Callable[..., Any]:
    def done(*args: Any, **kw: Any) -> Any:
        if bad(*args, **kw):
            raise FloatingPointError("of this row")
        return right(*args, **kw)

    return done


def drawn_by_bad(_: object, draws: Sequence[sample.Draw]) -> bool:
    return any(draw.seed == BAD for draw in draws)


def break_shape(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sampler, "_shape", unless_bad(Sampler._shape, lambda self, row, draw: draw.seed == BAD))


def break_draw(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sample, "random_token", unless_bad(sample.random_token, lambda row, draw: draw.seed == BAD))


def break_draw_of_all(patch: pytest.MonkeyPatch) -> None:
    """On a device all rows are drawn from at once."""
    together = lambda self, logits, draws: Sampler._together(self, torch.from_numpy(logits), draws)  # noqa: E731
    patch.setattr(Sampler, "_row_by_row", together)
    patch.setattr(sample, "random_tokens", unless_bad(sample.random_tokens, drawn_by_bad))


def break_logprobs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        feeder,
        "drawn_logprobs",
        unless_bad(feeder.drawn_logprobs, lambda logits, queries, drawn: any(q.seed == BAD for q in queries)),
    )


def break_prompt_logprobs(patch: pytest.MonkeyPatch) -> None:
    bad = lambda logits, tokens, best: BAD_BEST in best  # noqa: E731
    patch.setattr(feeder, "token_logprobs", unless_bad(feeder.token_logprobs, bad))


STAGES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "shape": (break_shape, "could not be drawn"),
    "draw": (break_draw, "could not be drawn"),
    "draw of all": (break_draw_of_all, "could not be drawn"),
    "logprobs": (break_logprobs, "could not be drawn"),
    "prompt_logprobs": (break_prompt_logprobs, "could not be told"),
}


def neighbours() -> list[Query]:
    """Rows of every kind; each shapes its logits, so that none is drawn on a device by itself."""
    some: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2},
        {"temperature": 0.7, "logprobs": 2, "logit_bias": {5: 1.0}},
        {"temperature": 1.0, "min_tokens": 3, "prompt_logprobs": 1},
    ]
    return [query_of(f"good{i}", range(3, 9 + i), 12, seed=i, **params) for i, params in enumerate(some)]


def bad_one(**params: Any) -> Query:
    asked = {
        "temperature": 1.0,
        "top_k": 5,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.1,
        "logprobs": 1,
        **params,
    }
    return query_of("bad", range(4, 20), 12, seed=BAD, **asked)


@cache
def right_one(way: str) -> RandomBatch:
    """What the neighbours give if nothing fails."""
    return run(way, neighbours())


@cache
def greedy_one(way: str) -> list[int]:
    return run(way, [query_of("greedy", range(3, 9), 12, temperature=0)]).tokens("greedy")


def run(way: str, queries: Sequence[Query]) -> RandomBatch:
    policy, more = WAYS[way]
    batch = random_batch("llama", policy(), rows=6, **more)
    batch.run(queries)
    return batch


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", STAGES)
def test_what_raises_for_one_row_is_its_end_alone(stage: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good, right = neighbours(), right_one(way)
    break_it, why = STAGES[stage]
    break_it(monkeypatch)
    batch = run(way, [good[0], bad_one(prompt_logprobs=BAD_BEST), *good[1:]])
    last = batch.updates["bad"][-1]
    assert last.finish_reason == "error" and why in (last.error or "") and "FloatingPointError" in (last.error or "")
    for query in good:
        assert batch.tokens(query.id) == right.tokens(query.id)
        assert batch.reason(query.id) == "length"
    assert batch.engine.lifecycle.ended[State.FAILED] == 1
    assert not batch.engine.busy and not batch.engine.batch.lens


@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_nothing_is_left_for_is_its_askers_trouble_alone(way: str) -> None:
    model = model_of("llama")
    every = tuple(range(model.config.vocab_size))
    good, right = neighbours(), right_one(way)
    batch = run(way, [*good, bad_one(stop_token_ids=every, min_tokens=3, temperature=1e-45)])
    last = batch.updates["bad"][-1]
    assert (last.finish_reason, last.infeasible) == ("error", True) and "no token may be drawn" in (last.error or "")
    assert all(batch.tokens(query.id) == right.tokens(query.id) for query in good)
    assert batch.engine.lifecycle.ended[State.FAILED] == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-45, 5.167657014254439e-38])
def test_the_coldest_draw_is_the_best_token(temperature: float, way: str) -> None:
    filters: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"top_p": 1e-300}, {"top_k": 3}, {"min_p": 1.0}]
    greedy = greedy_one(way)
    cold = [query_of(f"{i}", range(3, 9), 12, temperature=temperature, **more) for i, more in enumerate(filters)]
    batch = run(way, cold)
    assert [batch.tokens(query.id) for query in cold] == [greedy] * len(cold)
