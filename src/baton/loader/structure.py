"""Which way of running a model is exact: a question of what it computes, not of how its numbers are rounded.

So it is asked in float32, of the model's first layers, one of each kind; and of texts beyond each length that its
config names, as whatever begins there does not show before.
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
from baton.loader.upcast import can_be_lifted, layers_of_all_kinds, lifted
from baton.model.execution import AttentionBackend
from baton.model.forward import TorchForward
from baton.model.probe import call, own_words, probe
from baton.model.rotary import must_rotate_beyond

log = logging.getLogger("baton.model")

# What one pass over the texts beyond lengths may take; `baton check` goes further.
MOST_OPERATIONS = 1e11
# Stock attention keeps a score for each pair of tokens and each head.
MOST_SCORE_BYTES = 1 << 28
_BEYOND = 8
_LONGER = 13


@dataclass(frozen=True, slots=True)
class Structure:
    """`ways`: that which was found exact, and those behind it. `unchecked`: lengths that no text went beyond."""

    ways: tuple[tuple[AttentionBackend, bool], ...]
    checked_tokens: int
    unchecked: tuple[str, ...] = ()


def ways_of_running() -> list[tuple[AttentionBackend, bool]]:
    """All, in the order in which they are tried, and whether prompts are fed whole: recurrent layers may want that."""
    return list(itertools.product(AttentionBackend, (False, True)))


def structure(model: PreTrainedModel, columns: int, tolerance: float | None = None) -> Structure:
    """Raises LoadError, with the reasons of all ways that were tried, where none is exact.

    `tolerance`: of logits, for models that cannot be float32; that of their number format if left out.
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
                    return _found(model, texts, expected, unchecked, columns, stock, None)
            except LoadError:
                raise
            except Exception:
                log.info("the model does not run in float32: ways are compared in its own number format", exc_info=True)
        texts, unchecked = _texts(model, columns, every)
        try:
            expected = stock_logits(model, texts)
        except Exception as error:
            # Beyond some length its own code may fail, and there is nothing to compare with.
            raise LoadError(own_words("it does not run with a stock cache", error)) from error
        return _found(model, texts, expected, unchecked, columns, stock, tolerance)
    finally:
        model.set_attn_implementation(stock)


def _found(
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
    for at, (way, whole) in enumerate(every := ways_of_running()):
        try:
            forward = hooked(model, way, whole, stock)
            if forward is None:
                continue
            if counts and way not in (AttentionBackend.FLAT, AttentionBackend.PER_ROW):
                raise LoadError("it counts positions by the length of its cache, one for all rows of a call")
            self_check(model, forward, texts, expected, columns=columns, tolerance=tolerance)
            whatever_the_size(model, forward, texts[:2], columns)
            return Structure(tuple(every[at:]), max(len(text) for text in texts), unchecked)
        except LoadError as error:
            reasons.append(error.message)
        except Exception as error:
            # Whatever a family does that we do not know yet shows here, in its own code.
            reasons.append(own_words("it does not run with our cache", error))
    raise LoadError("; ".join(dict.fromkeys(reasons)))


def _must_be_causal(model: PreTrainedModel, text: Tensor) -> None:
    """Raises LoadError where what stands behind a token changes its logits: seen long before a wrong way is."""
    other = text.clone()
    other[-1] = (int(text[-1]) + 1) % model.config.get_text_config().vocab_size
    positions = torch.arange(len(text), device=model.device)[None]
    with torch.inference_mode():
        found = [
            call(model, tokens.to(model.device)[None], positions, DynamicCache(config=model.config)).logits[0, :-1]
            for tokens in (text, other)
        ]
    if not largest(found[:1], found[1:]) <= TOLERANCE[torch.float32] / 10:
        raise LoadError("its attention is not causal: tokens see those that come behind them")


def hooked(model: PreTrainedModel, way: AttentionBackend, whole: bool, stock: str) -> TorchForward | None:
    """The model run in this way; None where there is no such way for it. `stock`: its own attention's name."""
    model.set_attn_implementation(stock if way.ours else "eager")
    geometry = probe(model, interface=way.ours)
    if whole and not any(shape.states for shape in geometry.shapes):
        return None
    return TorchForward(model, geometry, way, whole_prompts=whole)


def _texts(model: PreTrainedModel, columns: int, layers: int) -> tuple[list[Tensor], tuple[str, ...]]:
    """Two short ones, and two beyond each length of the config that is cheap enough; and what is not."""
    config = model.config.get_text_config()
    context = columns or getattr(config, "max_position_embeddings", 0) or 2048
    named = lengths_of(config, above=SHORTEST_PROMPT + STEPS, below=context - _BEYOND - _LONGER - STEPS)
    lengths, unchecked, spent = [], [], 0.0
    for length, name in named.items():
        # And a row that is longer still, for what a row is told of its neighbour's length.
        both = [length + _BEYOND, length + _BEYOND + _LONGER]
        cost = sum(operations(model, tokens, layers, MOST_SCORE_BYTES) for tokens in both)
        if spent + cost > MOST_OPERATIONS:
            unchecked.append(f"{name} {length}")
            continue
        spent += cost
        lengths += both
    generator = torch.Generator().manual_seed(1)
    beyond = [torch.randint(config.vocab_size, (length + STEPS,), generator=generator) for length in lengths]
    return short_texts(config) + beyond, tuple(unchecked)


def operations(model: PreTrainedModel, tokens: int, layers: int, most_score_bytes: int) -> float:
    """Of a pass over so many, in so many layers; infinitely many where scores would take more memory."""
    config = model.config.get_text_config()
    if 4 * config.num_attention_heads * tokens**2 > most_score_bytes:
        return math.inf
    embedded = {id(p) for p in model.get_input_embeddings().parameters()}
    products = sum(p.numel() for p in model.parameters() if id(p) not in embedded)
    hidden: int = config.hidden_size
    return 2.0 * products * tokens + 4.0 * layers * hidden * tokens**2
