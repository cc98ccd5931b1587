"""Weights in float8: near the model's own, the same in any company, and refused if nothing would be gained."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from baton.core.errors import LoadError
from baton.cuda.float8 import FLOAT8, Float8Linear, in_torch, quantize
from baton.loader.choose import choose
from baton.loader.formats import FORMATS, ROUNDED_TOLERANCE
from baton.loader.selfcheck import check_texts, stock_logits
from baton.policy.baton import Baton
from families import model_of
from random_batch import Shaken, alone, random_batch, some_queries

CPU = torch.device("cpu")


def rows_of(count: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, width, generator=generator) * torch.logspace(-3, 3, count)[:, None]
    rows[count // 2] = 0
    return rows.bfloat16()


@pytest.mark.parametrize("width", [16, 80, 3000])
def test_numbers_times_their_rows_scale_are_the_rows(width: int) -> None:
    rows = rows_of(9, width)
    numbers, scales = in_torch(rows)
    assert (numbers.dtype, scales.dtype, scales.shape) == (FLOAT8, torch.float32, (9, 1))
    # Three bits of mantissa; what is below a thousandth of the largest loses more.
    error = (numbers.float() * scales - rows.float()).abs()
    assert bool((error <= rows.float().abs() / 15 + scales * 2**-9).all())
    assert not numbers[4].float().any()


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_the_one_it_was_made_of_up_to_rounding(bias: bool) -> None:
    linear = nn.Linear(64, 48, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    made, inputs = Float8Linear(linear, CPU), torch.randn(2, 5, 64).bfloat16()
    out, expected = made(inputs), linear(inputs)
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    assert 1e-3 < float((out - expected).norm() / expected.norm()) < 6e-2
    assert made.weight.element_size() == 1
    assert torch.equal(torch.compile(made, fullgraph=True, backend="eager")(inputs), out)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
def test_a_family_in_float8_is_near_itself_and_passes_its_own_check(family: str) -> None:
    model = model_of(family).bfloat16()
    texts = check_texts(model)
    before = stock_logits(model, texts)
    quantize(model, CPU)
    assert sum(isinstance(layer, Float8Linear) for layer in model.modules()) >= 4
    assert type(model.get_output_embeddings()) is nn.Linear
    assert model.dtype is torch.bfloat16
    after = stock_logits(model, texts)
    assert 1e-3 < max(float((a - b).norm() / b.norm()) for a, b in zip(after, before, strict=True)) < 0.4
    choice = choose(model, native=False, format=FORMATS["float8"])
    assert "linear layers in float8" in choice.description


def test_a_shaken_batch_in_float8_gives_what_each_query_gives_alone() -> None:
    """Up to near ties: what differs by a rounding of bfloat16 may differ by one of float8, so logits are compared."""
    queries = some_queries(10, random.Random(3))
    model = model_of("llama").bfloat16()
    quantize(model, CPU)
    expected = {query.id: alone(model, query) for query in queries}
    dice = random.Random(1)
    batch = random_batch(model, Shaken(Baton(), dice), native=False)
    batch.run(queries, dice)
    same = compared = 0
    for query in queries:
        tokens, logits = expected[query.id]
        for at, token in enumerate(batch.tokens(query.id)):
            ours = batch.recorder.logits[query.seed, len(query.prompt) + at]
            assert float((ours - logits[at]).abs().max() / logits[at].abs().max()) < ROUNDED_TOLERANCE
            same, compared = same + (token == tokens[at]), compared + 1
            if token != tokens[at]:
                break
    assert same > 0.9 * compared > 0.3 * sum(len(tokens) for tokens, _ in expected.values())


@pytest.mark.parametrize(
    ("family", "dtype", "words"),
    [
        ("llama", torch.float32, "computes in bfloat16"),
        ("qwen3_moe", torch.bfloat16, "weights are in linear layers"),
        ("gpt2", torch.bfloat16, "weights are in linear layers"),
    ],
)
def test_what_gains_nothing_is_refused(family: str, dtype: torch.dtype, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        quantize(model_of(family).to(dtype), CPU)  # type: ignore[arg-type]
