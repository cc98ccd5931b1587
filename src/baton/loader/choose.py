"""In which way a model is run: the fastest of those in which rows of a rectangle give what the model gives alone."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.cuda.forward import CudaForward
from baton.cuda.ragged_attention import Ragged
from baton.cuda.ragged_attention import ways as ragged_ways
from baton.cuda.varlen_prefill import Varlen, of_torch
from baton.loader.formats import PLAIN, ROUNDED_TOLERANCE, WeightFormat
from baton.loader.selfcheck import (
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
from baton.model.forward import TorchForward
from baton.model.hooked import BY_TOKEN, EXPERTS
from baton.model.port import Forward
from baton.model.probe import own_words
from baton.native.forward import NativeForward, check_native
from baton.native.lower import lower
from baton.native.program import Program
from baton.native.record import record

log = logging.getLogger("baton.model")

# Ways that are tried, in the words that they are told in.
NATIVE = "steps as one native call"
STEADY = "decode steps of constant shape"
PACKED = "prompts' attention in one call per layer"


@dataclass(frozen=True, slots=True)
class Reason:
    """`why` this way to run a model was not taken, though it is faster than what was."""

    way: str
    why: str

    def __str__(self) -> str:
        return f"not {self.way}: {self.why}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The forward that was taken, and why not a faster one.

    `checked_tokens`: the longest text of the self-check. `unchecked`: lengths that the model's config names and no
    text of the self-check went beyond. `format`: in which its weights are.
    """

    forward: Forward
    reasons: tuple[Reason, ...]
    checked_tokens: int
    unchecked: tuple[str, ...]
    format: WeightFormat = PLAIN

    @property
    def description(self) -> str:
        """How the model is run and why not otherwise, for people."""
        parts = self.forward.parts()
        if self.format.rounded_bits is not None:
            parts.append(f"linear layers in {self.format.name}")
        if isinstance(self.forward, TorchForward):
            parts.append("step by step in torch")
        parts += [str(reason) for reason in self.reasons]
        if self.unchecked:
            lengths = ", ".join(self.unchecked)
            parts.append(f"not checked beyond {self.checked_tokens} tokens: {lengths} (baton check does)")
        return "; ".join(parts)


def planned(device: torch.device) -> str:
    """How decode steps are tried first there, for people; what became of it, loading a model says."""
    facts = device_of(device)
    if not facts.captures:
        return "one native call each" if facts.kind == "cpu" else "in torch"
    ways, why = ragged_ways(device)
    return f"captured as a graph each, {ways[0].name}" + (f" ({why})" if why else "")


@dataclass(frozen=True, slots=True)
class Proof:
    """What a way has to give: `expected[i]` logits `[STEPS + 1, vocabulary]` for the text `texts[i]` `[tokens]`.

    `tolerance`: of logits relative to the largest; None takes that of the model's number format.
    """

    model: PreTrainedModel
    texts: list[Tensor]
    expected: list[Tensor]
    tolerance: float | None = None

    def check(self, forward: Forward, tolerance: float | None = None) -> None:
        """Raises LoadError for other logits."""
        self_check(self.model, forward, self.texts, self.expected, tolerance=tolerance or self.tolerance)


def proof_of(model: PreTrainedModel, tolerance: float | None = None) -> Proof:
    """What the stock model gives alone. Raises LoadError if it does not run."""
    use_reference_attention(model)
    texts = check_texts(model)
    try:
        expected = stock_logits(model, texts)
    except Exception as error:
        raise LoadError(own_words("it does not run with a stock cache", error)) from error
    if tolerance is None and model.dtype is not torch.float32:
        tolerance = tolerance_of(model, texts, [len(text) - STEPS for text in texts], expected)
    return Proof(model, texts, expected, tolerance)


def choose(
    model: PreTrainedModel,
    *,
    native: bool = True,
    why_not: str = "--no-compile",
    format: WeightFormat = PLAIN,
    release: bool = False,
    compiled: str | None = None,
    columns: int = 0,
    found: Structure | None = None,
) -> Choice:
    """Gives a model our cache and attention in the fastest way that gives what the model gives alone.

    `native`: whether anything but plain torch is tried; if not, `why_not` names the setting that says so.
    `release`: the model's own weights may be given back, so that only the forward can run it.
    `compiled`: the backend of torch.compile for decode steps of constant shape. `columns`: of the engine's rectangle,
    as far as that is known. `found`: what `structure` returned for the model.
    Raises LoadError, with the reasons of all ways that were tried, if none is exact or none computes with `format`.
    """
    if format.native_only and not native:
        raise LoadError(f"--quantize {format.name} needs native steps: leave out {why_not}")
    rounded = format.rounded_bits is not None and not format.native_only
    proof = proof_of(model, ROUNDED_TOLERANCE if rounded else None)
    found = found or structure(model, columns, proof.tolerance)
    plain = _in_torch(proof, found)
    forward: Forward = plain
    reasons = [Reason(NATIVE, why_not)]
    if native:
        forward, reasons = _fastest(proof, plain, format, release=release, compiled=compiled)
    checked = max(found.checked_tokens, *(len(text) for text in proof.texts))
    return Choice(forward, tuple(reasons), checked, found.unchecked, format)


def _fastest(
    proof: Proof, plain: TorchForward, format: WeightFormat, *, release: bool, compiled: str | None
) -> tuple[Forward, list[Reason]]:
    if not device_of(plain.device).captures or format.native_only:
        return in_native_steps(proof, plain, format, release=release)
    stepping, reasons = in_steady_steps(proof, plain, compiled=compiled)
    packing, more = with_packed_prompts(proof, stepping)
    return packing, reasons + more


def _in_torch(proof: Proof, found: Structure) -> TorchForward:
    """Raises LoadError, with the reasons of all ways that were tried."""
    model = proof.model
    stock = model.config.get_text_config()._attn_implementation
    reasons: list[str] = []
    for backend, whole in found.ways:
        try:
            forward = hooked(model, backend, whole, stock)
            if forward is None:
                continue
            proof.check(forward)
            return forward
        except LoadError as error:
            reasons.append(error.message)
        except Exception as error:
            reasons.append(own_words("it does not run with our cache", error))
    raise LoadError("; ".join(dict.fromkeys(reasons)))


def in_native_steps(
    proof: Proof, plain: TorchForward, format: WeightFormat = PLAIN, *, release: bool = False
) -> tuple[Forward, list[Reason]]:
    """The model's steps as native calls, if they give what it gives alone; else as they were, with the reason.

    Raises LoadError instead if nothing else computes with `format`.
    """
    model, program = proof.model, None
    try:
        check_native(plain)
        program = Program(
            lower(record(model)),
            plain.geometry,
            model.dtype,
            threads=torch.get_num_threads(),
            packing=format.packing,
            release=model.parameters() if release else (),
        )
        forward = NativeForward(program, plain)
        proof.check(forward, ROUNDED_TOLERANCE if format.rounded_bits is not None else None)
        return forward, []
    except LoadError as error:
        if format.native_only:
            raise LoadError(f"--quantize {format.name}: {error.message}") from error
        if program is not None:
            program.restore()
        return plain, [Reason(NATIVE, error.message)]


def in_steady_steps(
    proof: Proof, plain: TorchForward, ways: Sequence[Ragged] = (), *, compiled: str | None = None
) -> tuple[TorchForward | CudaForward, list[Reason]]:
    """Decode steps of constant shape in the first way that gives what the model gives alone; else as they were.

    `ways`: those of `ragged_attention.ways` if left out. `compiled`: by this backend of torch.compile, if that works.
    """
    model = proof.model
    found, why = (ways, "") if ways else ragged_ways(model.device)
    reasons = [Reason("attention in Triton", why)] if why else []
    experts: list[str | None] = [None]
    if plain.hooked.experts:
        # Token by token, nobody asks the host how many tokens each expert has.
        experts = [None, BY_TOKEN] if device_of(model.device).groups(model.dtype) else [BY_TOKEN]
    compilers = (compiled, None) if compiled else (None,)
    for ragged, how, compiler in itertools.product(found, experts, compilers):
        tried = f"{STEADY} by " + ", ".join(
            [ragged.name, *([EXPERTS[how]] if how else []), *([compiler] if compiler else [])]
        )
        if compiler:
            log.info("compiling layers for decode steps with %s, which takes a while", compiler)
        try:
            forward = CudaForward(plain, ragged, compiled=compiler, experts=how)
            proof.check(forward)
            return forward, reasons
        except LoadError as error:
            reasons.append(Reason(tried, error.message))
        except Exception as error:
            reasons.append(Reason(tried, own_words("it does not run", error)))
    return plain, reasons


def with_packed_prompts(
    proof: Proof, forward: TorchForward | CudaForward, varlen: Varlen | None = None
) -> tuple[TorchForward | CudaForward, list[Reason]]:
    """Prompts' attention in one call per layer, if that gives what calls row by row give; else as it was.

    `varlen`: torch's own if left out.
    """
    model = proof.model
    try:
        varlen = varlen or of_torch(model.device, model.dtype)
        varlen.proving = True
        packing = _packing(forward, varlen)
        proof.check(packing)
        mixed_fills(model, packing)
        varlen.proving = False
        if not varlen.calls:
            raise LoadError("none of its layers can be attended so")
        return packing, []
    except LoadError as error:
        return forward, [Reason(PACKED, error.message)]
    except Exception as error:
        return forward, [Reason(PACKED, own_words("it does not run", error))]


def _packing(forward: TorchForward | CudaForward, varlen: Varlen) -> CudaForward:
    if isinstance(forward, TorchForward):
        return CudaForward(forward, varlen=varlen)
    steps = {"compiled": forward.compiled, "experts": forward.experts}
    return CudaForward(forward.torch_forward, forward.ragged, varlen=varlen, **steps)
