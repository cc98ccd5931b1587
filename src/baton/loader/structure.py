"""Finds the way of running a model that is exact. This depends on what it computes, not on how numbers are rounded.

So it is tested in float32, on the model's first layers, one of each kind. The texts are longer than each length that
its config names, because an effect that begins there does not show before.
"""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from baton.core.errors import LoadError
from baton.loader.cache_length import length_matters
from baton.loader.lengths import lengths_of
from baton.loader.selfcheck import (
    SHORTEST_PROMPT,
    STEPS,
    TOLERANCE,
    largest,
    self_check,
    short_texts,
    stock_logits,
    whatever_the_size,
)
from baton.loader.upcast import can_be_lifted, layers_of_all_kinds, lifted, tokens_of
from baton.model.execution import AttentionBackend
from baton.model.forward import TorchForward
from baton.model.packed_layers import count_weights
from baton.model.packed_linear import not_computed
from baton.model.probe import call, own_words, probe
from baton.model.rotary import must_rotate_beyond

log = logging.getLogger("baton.model")

# The most operations of one pass over the texts beyond lengths; `baton check` goes further.
MOST_OPERATIONS = 1e11
# Stock attention keeps a score for each pair of tokens and each head.
MOST_SCORE_BYTES = 1 << 28
_BEYOND = 8
_LONGER = 13


@dataclass(frozen=True, slots=True)
class Structure:
    """`backends`: the first exact one, and the ones after it. `unchecked`: lengths that no text exceeded."""

    backends: tuple[tuple[AttentionBackend, bool], ...]
    checked_tokens: int
    unchecked: tuple[str, ...] = ()


def backends_to_try() -> list[tuple[AttentionBackend, bool]]:
    """All backends in the order of trial, and whether prompts are fed whole, which recurrent layers may need."""
    return list(itertools.product(AttentionBackend, (False, True)))


def structure(model: PreTrainedModel, columns: int, tolerance: float | None = None) -> Structure:
    """Raises LoadError, with the reasons of all backends that were tried, if none is exact.

    `tolerance`: of logits, for models that cannot be float32; by default that of their number format.
    """
    must_rotate_beyond(model)
    layers, every = layers_of_all_kinds(model)
    stock = model.config.get_text_config()._attn_implementation
    try:
        if can_be_lifted(model, layers):
            try:
                with lifted(model, layers):
                    texts, unchecked = _texts(model, columns, layers)
                    _must_be_causal(model, texts[0])
                    expected = stock_logits(model, texts)
                    return _first_exact(model, texts, expected, unchecked, columns, stock, None)
            except LoadError:
                raise
            except Exception:
                log.info("the model does not run in float32: ways are compared in its own number format", exc_info=True)
        texts, unchecked = _texts(model, columns, every)
        try:
            expected = stock_logits(model, texts)
        except Exception as error:
            # Its own code may fail beyond some length, and then there is nothing to compare with.
            raise LoadError(own_words("it does not run with a stock cache", error)) from error
        return _first_exact(model, texts, expected, unchecked, columns, stock, tolerance)
    finally:
        model.set_attn_implementation(stock)


def _first_exact(
    model: PreTrainedModel,
    texts: list[Tensor],
    expected: list[Tensor],
    unchecked: tuple[str, ...],
    columns: int,
    stock: str,
    tolerance: float | None,
) -> Structure:
    counts = length_matters(model)
    reasons: list[str] = []
    for at, (backend, whole) in enumerate(every := backends_to_try()):
        try:
            forward = hooked(model, backend, whole, stock)
            if forward is None:
                continue
            if counts and backend not in (AttentionBackend.FLAT, AttentionBackend.PER_ROW):
                raise LoadError("it counts positions by the length of its cache, one for all rows of a call")
            self_check(model, forward, texts, expected, columns=columns, tolerance=tolerance)
            whatever_the_size(model, forward, texts[:2], columns)
            return Structure(tuple(every[at:]), max(len(text) for text in texts), unchecked)
        except LoadError as error:
            reasons.append(error.message)
        except Exception as error:
            # Any unknown trait of a family shows here, as an error in its own code.
            reasons.append(own_words("it does not run with our cache", error))
    raise LoadError("; ".join(dict.fromkeys(reasons)))


def _must_be_causal(model: PreTrainedModel, text: Tensor) -> None:
    """Raises LoadError if a later token changes a token's logits; this is found long before a wrong backend is."""
    other = text.clone()
    other[-1] = (int(text[-1]) + 1) % tokens_of(model)
    positions = torch.arange(len(text), device=model.device)[None]
    with torch.inference_mode():
        logits = [
            call(model, tokens.to(model.device)[None], positions, DynamicCache(config=model.config)).logits[0, :-1]
            for tokens in (text, other)
        ]
    if not largest(logits[:1], logits[1:]) <= TOLERANCE[torch.float32] / 10:
        raise LoadError("its attention is not causal: tokens see later ones")


def hooked(model: PreTrainedModel, backend: AttentionBackend, whole: bool, stock: str) -> TorchForward | None:
    """Returns the model with this backend; None if it has no such backend. `stock`: its own attention's name."""
    model.set_attn_implementation(stock if backend.ours else "eager")
    with not_computed():
        geometry = probe(model, interface=backend.ours)
    if whole and not any(shape.states for shape in geometry.shapes):
        return None
    return TorchForward(model, geometry, backend, whole_prompts=whole)


def _texts(model: PreTrainedModel, columns: int, layers: int) -> tuple[list[Tensor], tuple[str, ...]]:
    """Two short texts, and two beyond each length of the config that is cheap enough; and the lengths that are not."""
    config = model.config.get_text_config()
    context = columns or getattr(config, "max_position_embeddings", 0) or 2048
    named = lengths_of(config, above=SHORTEST_PROMPT + STEPS, below=context - _BEYOND - _LONGER - STEPS)
    lengths, unchecked, spent = [], [], 0.0
    for length, name in named.items():
        # And a row that is longer still, in case one row's result depends on its neighbour's length.
        both = [length + _BEYOND, length + _BEYOND + _LONGER]
        cost = sum(operations(model, tokens, layers, MOST_SCORE_BYTES) for tokens in both)
        if spent + cost > MOST_OPERATIONS:
            unchecked.append(f"{name} {length}")
            continue
        spent += cost
        lengths += both
    generator = torch.Generator().manual_seed(1)
    beyond = [torch.randint(tokens_of(model), (length + STEPS,), generator=generator) for length in lengths]
    return short_texts(model) + beyond, tuple(unchecked)


def operations(model: PreTrainedModel, tokens: int, layers: int, most_score_bytes: int) -> float:
    """Operations of a pass over so many tokens, in so many layers; infinite if scores would take more memory."""
    config = model.config.get_text_config()
    if 4 * getattr(config, "num_attention_heads", 0) * tokens**2 > most_score_bytes:
        return math.inf
    embedded = {id(p) for p in model.get_input_embeddings().parameters()}
    products = count_weights(model) - sum(p.numel() for p in model.parameters() if id(p) in embedded)
    hidden: int = config.hidden_size
    return 2.0 * products * tokens + 4.0 * layers * hidden * tokens**2
