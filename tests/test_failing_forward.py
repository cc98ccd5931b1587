"""A forward that fails in the middle of the model has changed nothing: it is repeated, and no query notices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from baton.core.query import Query
from baton.native import library as native
from baton.native.forward import NativeForward
from baton.native.program import Program
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Policy
from baton.policy.run_to_completion import RunToCompletion
from families import model_of
from random_batch import RandomBatch, Shaken, alone, random_batch, some_queries

TOLERANCE = 1e-4

# One of each kind of layer and each way of running: columns, rings, chunks, latents, states, both in one layer, masked.
FAMILIES = (
    "llama",
    "mistral_window",
    "gemma3",
    "llama4",
    "deepseek_v3",
    "mamba2",
    "mamba",
    "falcon_h1",
    "qwen3_next",
    "lfm2",
    "phi3_longrope",
    "bloom",
    "gpt_neo",
)


class Trouble:
    """Memory runs out after about every sixth call of `name`, never twice in a row."""

    def __init__(self, owner: object, name: str, dice: random.Random) -> None:
        self.times = 0
        self._dice, self._right, self._just = dice, getattr(owner, name), False
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._right(*args, **kwargs)
        self._just = not self._just and self._dice.random() < 1 / 6
        if self._just:
            self.times += 1
            # After keys, values and states were written.
            raise MemoryError
        return result


def program_of(batch: RandomBatch) -> Program | None:
    """What runs the model's steps natively; None if torch does."""
    forward = batch.engine.batch._rows.feeder.forward  # type: ignore[attr-defined]
    return forward.program if isinstance(forward, NativeForward) else None


def queries_of(family: str) -> list[Query]:
    """The same under each policy, so that what each gives alone is computed once."""
    return some_queries(12, random.Random(family), longest_prompt=50, longest_answer=16)


def layers_of(model: torch.nn.Module) -> torch.nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) > 2)


@pytest.mark.parametrize("policy", [Baton, Orca, RunToCompletion])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_fails_in_the_last_layer_is_repeated_and_gives_the_same(family: str, policy: type[Policy]) -> None:
    dice, queries = random.Random(f"{family} {policy.__name__}"), queries_of(family)
    expected = {query.id: alone(family, query) for query in queries}
    model = model_of(family)
    batch = random_batch(model, Shaken(policy(), dice), native=False)
    trouble = Trouble(layers_of(model)[-1], "forward", dice)
    batch.run(queries, dice)
    check(batch, queries, expected, trouble)


@pytest.mark.skipif(native.library is None, reason=native.describe())
@pytest.mark.parametrize("policy", [Baton, Orca, RunToCompletion])
@pytest.mark.parametrize("family", ["llama", "mistral_window", "gemma3"])
def test_a_native_step_that_fails_is_repeated_and_gives_the_same(family: str, policy: type[Policy]) -> None:
    dice, queries = random.Random(f"{family} {policy.__name__}"), queries_of(family)
    expected = {query.id: alone(family, query) for query in queries}
    batch = random_batch(model_of(family), Shaken(policy(), dice))
    trouble = Trouble(program_of(batch), "run", dice)
    batch.run(queries, dice)
    check(batch, queries, expected, trouble)


def check(
    batch: RandomBatch, queries: Sequence[Query], expected: dict[str, tuple[list[int], torch.Tensor]], trouble: Trouble
) -> None:
    """Each query gave what it gives alone, though there was trouble."""
    assert trouble.times > 3
    for query in queries:
        tokens, logits = expected[query.id]
        assert batch.reason(query.id) == "length"
        assert batch.tokens(query.id) == tokens
        rows = [batch.recorder.logits[query.seed, len(query.prompt) + i] for i in range(len(tokens))]
        assert float((torch.stack(rows) - logits).abs().max() / logits.abs().max()) <= TOLERANCE
    assert batch.engine.kv_bytes_used == 0
