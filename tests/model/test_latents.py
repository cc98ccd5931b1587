"""Attention over latents as they are kept: which expansions are taken, and that others are refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.loader.choose import choose
from baton.native import library as native
from baton.native.forward import NativeForward
from baton.native.latents import absorbed
from baton.native.record import record
from families import _MLA, Family, bare_model, model_from, model_of

pytestmark = pytest.mark.skipif(native.library is None, reason=native.describe())


def expanding_by(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> PreTrainedModel:
    """A model whose layers change what they have expanded."""
    model = copy.deepcopy(bare_model(Family("deepseek_v3", "deepseek_v3", _MLA)))
    for module in model.modules():
        if hasattr(module, "expand_kv"):
            right = module.expand_kv

            def expand(latents: Tensor, rotated: Tensor, right: Any = right) -> tuple[Tensor, Tensor]:
                return change(*right(latents, rotated))

            setattr(module, "expand_kv", expand)  # noqa: B010 (a module's own fields are tensors and modules, to mypy)
    return model


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda keys, values: (keys.tanh(), values), "no linear map"),
        (lambda keys, values: (keys, values + 0.5), "no linear map"),
        (lambda keys, values: (keys.flip(-1), values.square()), "no linear map"),
        (lambda keys, values: (2 * keys, values), "rotated keys that differ by head"),
        (lambda keys, values: (keys, values + keys), "not parted into latent and rotated"),
        (lambda keys, values: (keys[..., torch.arange(16) // 2 + torch.arange(16) % 2 * 8], values), "not parted"),
    ],
)
def test_other_expansions_are_refused(change: Any, why: str) -> None:
    with pytest.raises(LoadError, match=why):
        absorbed(record(expanding_by(change)))


def test_keys_may_have_the_rotated_part_first() -> None:
    """With queries that have it there, too, it is the same attention."""
    maps = absorbed(record(expanding_by(lambda keys, values: (keys.roll(8, -1), values))))
    assert maps.as_saved


def test_nothing_is_changed_of_a_recording_that_is_used_again() -> None:
    recorded = record(model_of("deepseek_v3"))
    before = str(recorded.graph.graph)
    once, again = absorbed(recorded), absorbed(recorded)
    assert str(recorded.graph.graph) == before != str(once.graph.graph) == str(again.graph.graph)
    assert absorbed(once) is once
    plain = record(model_of("llama"))
    assert absorbed(plain) is plain


def test_a_row_keeps_latents_and_rotated_keys() -> None:
    model = model_of("deepseek_v3")
    forward = choose(model).forward
    assert isinstance(forward, NativeForward)
    # A token goes to the weights of all heads, so it chooses none of them.
    assert forward.program.chosen_share == 0
    latents, rotated = model.config.kv_lora_rank, model.config.qk_rope_head_dim
    assert {(one.heads, one.key_dim, one.value_dim) for one in forward.geometry.shapes} == {
        (1, latents + rotated, latents)
    }


@pytest.mark.parametrize("kind", ["glm4_moe_lite", "youtu", "minicpm3"])
def test_no_family_is_named(kind: str) -> None:
    forward = choose(model_from(Family(kind, kind, _MLA))).forward
    assert isinstance(forward, NativeForward)


def test_in_bfloat16_too() -> None:
    model = copy.deepcopy(model_of("deepseek_v3")).to(torch.bfloat16)  # type: ignore[arg-type]
    assert isinstance(choose(model).forward, NativeForward)
