"""In which way a model is run: the first in which rows of a rectangle give what the model gives alone."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.cuda.ragged_attention import Ragged
from baton.cuda.ragged_attention import ways as ragged_ways
from baton.cuda.varlen_prefill import Varlen, of_torch
from baton.loader.selfcheck import (
    INT8_TOLERANCE,
    STEPS,
    check_texts,
    mixed_fills,
    self_check,
    stock_logits,
    tolerance_of,
    use_reference_attention,
)
from baton.loader.structure import Structure, hooked, structure
from baton.model.device import device_of
from baton.model.execution import AttentionBackend
from baton.model.forward import Forward
from baton.model.hooked import BY_TOKEN, EXPERTS
from baton.model.probe import own_words
from baton.native.lower import lower
from baton.native.program import Program
from baton.native.record import record

log = logging.getLogger("baton.model")


def planned(device: torch.device) -> str:
    """How decode steps are tried first there, for people; what became of it, loading a model says."""
    facts = device_of(device)
    if not facts.captures:
        return "one native call each" if facts.kind == "cpu" else "in torch"
    ways, why = ragged_ways(device)
    return f"captured as a graph each, {ways[0].name}" + (f" ({why})" if why else "")


def hook(
    model: PreTrainedModel,
    *,
    native: bool = True,
    why_not: str = "--no-compile",
    int8: bool = False,
    release: bool = False,
    compiled: str | None = None,
    tolerance: float | None = None,
    columns: int = 0,
    found: Structure | None = None,
) -> Forward:
    """Gives a model our cache and attention in the first way in which it gives what it gives alone.

    Where its steps can be carried out natively, they are, unless `native` is false (`why_not` says which setting made
    it so); `int8`: with weights in 8 bits.
    `release`: the model's own weights may then be given back, so that only the forward can run it.
    `tolerance`: of logits, other than that of the model's dtype.
    `compiled`: the backend of torch.compile that decode steps of constant shape go through, where there are such.
    `columns`: of the engine's rectangle, as far as that is known. `found`: what `structure` answered for the model.
    Raises LoadError, with the reasons of all ways that were tried, where none is exact, or none is for `int8`.
    """
    if int8 and not native:
        raise LoadError(f"--quantize int8 needs native steps: leave out {why_not}")
    use_reference_attention(model)
    texts = check_texts(model)
    try:
        expected = stock_logits(model, texts)
    except Exception as error:
        raise LoadError(own_words("it does not run with a stock cache", error)) from error
    if tolerance is None and model.dtype is not torch.float32:
        tolerance = tolerance_of(model, texts, [len(text) - STEPS for text in texts], expected)
    found = found or structure(model, columns, tolerance)
    forward = _hooked(model, texts, expected, tolerance, found)
    if not native:
        forward.go_native(None, why_not)
    else:
        go_native(model, forward, texts, expected, int8=int8, release=release, tolerance=tolerance)
        if device_of(model.device).captures:
            go_resident(model, forward, texts, expected, compiled=compiled, tolerance=tolerance)
            go_packed(model, forward, texts, expected, tolerance=tolerance)
    return forward


def _hooked(
    model: PreTrainedModel, texts: list[Tensor], expected: list[Tensor], tolerance: float | None, found: Structure
) -> Forward:
    """In torch. Raises LoadError, with the reasons of all ways that were tried."""
    stock = model.config.get_text_config()._attn_implementation
    reasons: list[str] = []
    for way, whole in found.ways:
        try:
            forward = hooked(model, way, whole, stock)
            if forward is None:
                continue
            self_check(model, forward, texts, expected, tolerance=tolerance)
            forward.checked_tokens = max(found.checked_tokens, *(len(text) for text in texts))
            forward.unchecked = found.unchecked
            return forward
        except LoadError as error:
            reasons.append(error.message)
        except Exception as error:
            reasons.append(own_words("it does not run with our cache", error))
    raise LoadError("; ".join(dict.fromkeys(reasons)))


def go_native(
    model: PreTrainedModel,
    forward: Forward,
    texts: list[Tensor],
    expected: list[Tensor],
    *,
    int8: bool = False,
    release: bool = False,
    tolerance: float | None = None,
) -> None:
    """Has the model's steps carried out natively, where they can be, with the results that it gives alone.

    Raises LoadError with `int8`, which nothing else can do, where they cannot be.
    """
    program = None
    try:
        if model.device.type != "cpu":
            raise LoadError(f"native steps are for the CPU, not for {model.device.type}")
        if forward.way is not AttentionBackend.RAGGED:
            raise LoadError("its layers do not take our attention as it is")
        if forward.near_limit is not None:
            raise LoadError("its rotation depends on a text's length")
        draft = lower(record(model))
        program = Program(
            draft,
            forward.geometry,
            model.dtype,
            threads=torch.get_num_threads(),
            int8=int8,
            release=model.parameters() if release else (),
        )
        forward.go_native(program)
        self_check(model, forward, texts, expected, tolerance=INT8_TOLERANCE if int8 else tolerance)
    except LoadError as error:
        if int8:
            raise LoadError(f"--quantize int8: {error.message}") from error
        forward.go_native(None, error.message)
        if program is not None:
            program.restore()


def go_resident(
    model: PreTrainedModel,
    forward: Forward,
    texts: list[Tensor],
    expected: list[Tensor],
    ways: Sequence[Ragged] = (),
    *,
    compiled: str | None = None,
    tolerance: float | None = None,
) -> None:
    """Has decode steps be of constant shape, on CUDA graphs, in the first way that gives what the model gives alone.

    `ways`: those of `ragged.ways` if left out. `compiled`: by this backend of torch.compile, where that works. Where
    no way does, steps stay as they were; why one that is faster was not taken is named.
    """
    found, why = (ways, "") if ways else ragged_ways(model.device)
    reasons = [why] * bool(why)
    experts: list[str | None] = [None]
    if forward.experts:
        # Token by token, nobody asks the host how many tokens each expert has.
        experts = [None, BY_TOKEN] if device_of(model.device).groups(model.dtype) else [BY_TOKEN]
    compilers = (compiled, None) if compiled else (None,)
    for ragged, how, compiler in itertools.product(found, experts, compilers):
        tried = ", ".join([ragged.name, *([EXPERTS[how]] if how else []), *([compiler] if compiler else [])])
        if compiler:
            log.info("compiling layers for decode steps with %s, which takes a while", compiler)
        try:
            forward.go_resident(ragged, "; ".join(dict.fromkeys(reasons)), compiled=compiler, experts=how)
            self_check(model, forward, texts, expected, tolerance=tolerance)
            return
        except LoadError as error:
            reasons.append(f"{tried}: {error.message}")
        except Exception as error:
            reasons.append(own_words(f"{tried} does not run", error))
    forward.go_resident(None, "; ".join(dict.fromkeys(reasons)))


def go_packed(
    model: PreTrainedModel,
    forward: Forward,
    texts: list[Tensor],
    expected: list[Tensor],
    varlen: Varlen | None = None,
    *,
    tolerance: float | None = None,
) -> None:
    """Has prompts' attention be one call per layer, where that gives what calls request by request give.

    `varlen`: torch's own if left out. Where it does not, prompts stay as they were, and why is named.
    """
    try:
        varlen = varlen or of_torch(model.device, model.dtype)
        varlen.proving = True
        forward.go_packed(varlen)
        self_check(model, forward, texts, expected, tolerance=tolerance)
        mixed_fills(model, forward)
        varlen.proving = False
        if not varlen.calls:
            raise LoadError("none of its layers can be attended so")
    except LoadError as error:
        forward.go_packed(None, error.message)
    except Exception as error:
        forward.go_packed(None, own_words("in one call it does not run", error))
