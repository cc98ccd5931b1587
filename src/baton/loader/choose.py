"""Chooses how a model is run: the fastest way in which rows of a rectangle give what the model gives alone."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.cuda.forward import CudaForward
from baton.cuda.ragged_attention import Ragged, ragged_backends
from baton.cuda.varlen_prefill import Varlen, of_torch
from baton.loader.formats import PLAIN, ROUNDED_ACTIVATIONS, ROUNDED_TOLERANCE, WeightFormat
from baton.loader.kept_steps import StepCache
from baton.loader.selfcheck import (
    STEPS,
    TOLERANCE,
    at_once,
    check_texts,
    mixed_fills,
    our_logits,
    self_check,
    stock_logits,
    tolerance_of,
    use_reference_attention,
)
from baton.loader.structure import Structure, hooked, structure
from baton.model.device import device_of, free_bytes
from baton.model.forward import TorchForward
from baton.model.hooked import BY_TOKEN, EXPERTS
from baton.model.packed_layers import packed_layers
from baton.model.packed_linear import not_computed
from baton.model.port import Forward
from baton.model.probe import own_words
from baton.native.forward import NativeForward, check_native
from baton.native.lower import lower
from baton.native.program import Program
from baton.native.record import record

log = logging.getLogger("baton.model")

# Ways to run a model, in the words that people read.
NATIVE = "steps as one native call"
STEADY = "decode steps of constant shape"
PACKED = "prompts' attention in one call per layer"


@dataclass(frozen=True, slots=True)
class Reason:
    """`why` this way to run a model was not taken, though it is faster than the one that was."""

    way: str
    why: str

    def __str__(self) -> str:
        return f"not {self.way}: {self.why}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The forward that was taken, and why not a faster one.

    `checked_tokens`: the longest text of the self-check. `unchecked`: lengths that the model's config names and that no
    text of the self-check exceeded. `format`: of its weights.
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
            parts.append(f"linear layers in {self.format.name}{self._kept_in()}")
        if isinstance(self.forward, TorchForward):
            parts.append("step by step in torch")
        parts += [str(reason) for reason in self.reasons]
        if self.unchecked:
            lengths = ", ".join(self.unchecked)
            parts.append(f"not checked beyond {self.checked_tokens} tokens: {lengths} (baton check does)")
        return "; ".join(parts)

    def _kept_in(self) -> str:
        if not isinstance(self.forward, NativeForward):
            return ""
        return f" ({self.forward.program.weight_bytes / 2**20:,.1f} MiB)"


def planned(device: torch.device) -> str:
    """The first way in which decode steps are tried on this device, for people.

    Loading a model says which was taken.
    """
    facts = device_of(device)
    if not facts.captures:
        return "one native call each" if facts.kind == "cpu" else "in torch"
    ragged, why = ragged_backends(device)
    return f"captured as a graph each, {ragged[0].name}" + (f" ({why})" if why else "")


@dataclass(frozen=True, slots=True)
class Proof:
    """What a way must give: `expected[i]` logits `[STEPS + 1, vocabulary]` for the text `texts[i]` `[tokens]`.

    `tolerance`: of logits relative to the largest; None takes that of the model's number format.
    """

    model: PreTrainedModel
    texts: list[Tensor]
    expected: list[Tensor]
    tolerance: float | None = None

    def check(self, forward: Forward, tolerance: float | None = None, *, choosing: bool = False) -> None:
        """Raises LoadError for other logits. `choosing`: see `self_check`."""
        within = tolerance or self.tolerance
        self_check(self.model, forward, self.texts, self.expected, tolerance=within, choosing=choosing)


def proof_of(model: PreTrainedModel, tolerance: float | None = None) -> Proof:
    """Runs the stock model alone. Raises LoadError if it does not run."""
    use_reference_attention(model)
    texts = check_texts(model)
    # Packed layers are unpacked for each forward, so the whole model runs once.
    packed = bool(packed_layers(model))
    texts = texts[:1] if packed else texts
    try:
        expected = [at_once(model, text) for text in texts] if packed else stock_logits(model, texts)
    except Exception as error:
        raise LoadError(own_words("it does not run with a stock cache", error)) from error
    if packed:
        tolerance = max(ROUNDED_ACTIVATIONS, TOLERANCE.get(model.dtype, ROUNDED_ACTIVATIONS))
    elif tolerance is None and model.dtype is not torch.float32:
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
    exact: Structure | None = None,
    cache: StepCache | None = None,
) -> Choice:
    """Gives a model our cache and attention in the fastest way that gives what the model gives alone.

    `native`: whether anything but plain torch is tried; if not, `why_not` names the setting that says so. `release`:
    the model's own weights may be given back, so that only the forward can run it. `compiled`: the backend of
    torch.compile for decode steps of constant shape. `columns`: of the engine's rectangle, as far as known. `exact`:
    what `structure` returned for the model. `cache`: has a native step that an earlier start proved, or keeps the one
    that is proved now. Raises LoadError, with the reasons of all ways that were tried, if none is
    exact or none computes with `format`.
    """
    if format.native_only and not native:
        raise LoadError(f"--quantize {format.name} needs native steps: leave out {why_not}")
    if cache is not None and (kept := cache.take(torch.get_num_threads())) is not None:
        proved, facts = kept
        return Choice(proved, (), facts.checked_tokens, facts.unchecked, format)
    rounded = format.rounded_bits is not None and not format.native_only
    proof = proof_of(model, ROUNDED_TOLERANCE if rounded else None)
    exact = exact or structure(model, columns, proof.tolerance)
    plain = _in_torch(proof, exact)
    forward: Forward = plain
    reasons = [Reason(NATIVE, why_not)]
    if native:
        forward, reasons = _fastest(proof, plain, format, release=release, compiled=compiled, cache=cache)
    checked = max(exact.checked_tokens, *(len(text) for text in proof.texts))
    if cache is not None and isinstance(forward, NativeForward):
        cache.keep(forward, proof.texts, plain, checked_tokens=checked, unchecked=exact.unchecked)
    return Choice(forward, tuple(reasons), checked, exact.unchecked, format)


def _fastest(
    proof: Proof,
    plain: TorchForward,
    format: WeightFormat,
    *,
    release: bool,
    compiled: str | None,
    cache: StepCache | None,
) -> tuple[Forward, list[Reason]]:
    if not device_of(plain.device).captures or format.native_only:
        return in_native_steps(proof, plain, format, release=release, cache=cache)
    stepping, reasons = in_steady_steps(proof, plain, compiled=compiled)
    packing, more = with_packed_prompts(proof, stepping)
    return packing, reasons + more


def _in_torch(proof: Proof, exact: Structure) -> TorchForward:
    """Raises LoadError, with the reasons of all ways that were tried."""
    model = proof.model
    stock = model.config.get_text_config()._attn_implementation
    reasons: list[str] = []
    for backend, whole in exact.backends:
        try:
            forward = hooked(model, backend, whole, stock)
            if forward is None:
                continue
            # The first way of a packed model was found exact on its first layers.
            if not packed_layers(model):
                proof.check(forward)
            return forward
        except LoadError as error:
            reasons.append(error.message)
        except Exception as error:
            reasons.append(own_words("it does not run with our cache", error))
    raise LoadError("; ".join(dict.fromkeys(reasons)))


def in_native_steps(
    proof: Proof,
    plain: TorchForward,
    format: WeightFormat = PLAIN,
    *,
    release: bool = False,
    cache: StepCache | None = None,
) -> tuple[Forward, list[Reason]]:
    """Returns the model's steps as native calls if they are exact; else the steps as they were, with the reason.

    Raises LoadError instead if nothing else computes with `format`.
    """
    model, program = proof.model, None
    try:
        check_native(plain)
        with not_computed():
            graph = lower(record(model, plain.geometry.shapes))
        if cache is not None:
            cache.hold(graph)
        program = Program(
            graph,
            plain.geometry,
            model.dtype,
            threads=torch.get_num_threads(),
            packing=format.packing,
            parameters=model.parameters(),
            kept=format.kept,
            release=release,
        )
        forward = NativeForward(program, plain)
        if format.packing.exact:
            rounded = model.dtype is not torch.float32 or bool(packed_layers(model))
            proof.check(forward, choosing=program.chooses and rounded)
        else:
            _check_rounded(proof, plain, forward, format)
        return forward, []
    except LoadError as error:
        if format.native_only:
            raise LoadError(f"--quantize {format.name}: {error.message}") from error
        if program is not None:
            program.restore()
        return plain, [Reason(NATIVE, error.message)]


def _check_rounded(proof: Proof, plain: TorchForward, forward: NativeForward, format: WeightFormat) -> None:
    """Compares with the model in torch with the rounded weights, if there is memory for them; else with its own."""
    program = forward.program
    room = program.lendable_bytes
    if room is None or room > free_bytes(plain.device):
        return proof.check(forward, format.rough_tolerance, choosing=program.chooses)
    with program.lent():
        expected = our_logits(proof.model, plain, proof.texts)
    tolerance = max(format.tolerance, proof.tolerance or 0)
    return replace(proof, expected=expected).check(forward, tolerance, choosing=program.chooses)


def in_steady_steps(
    proof: Proof, plain: TorchForward, backends: Sequence[Ragged] = (), *, compiled: str | None = None
) -> tuple[TorchForward | CudaForward, list[Reason]]:
    """Returns decode steps of constant shape in the first exact way; else the steps as they were.

    `backends`: attention to try; by default `ragged_attention.ragged_backends`. `compiled`: tries this backend of
    torch.compile too.
    """
    model = proof.model
    candidates, why = (backends, "") if backends else ragged_backends(model.device)
    reasons = [Reason("attention in Triton", why)] if why else []
    experts: list[str | None] = [None]
    if plain.hooked.experts:
        # If experts run token by token, the host need not be asked how many tokens each expert has.
        experts = [None, BY_TOKEN] if device_of(model.device).groups(model.dtype) else [BY_TOKEN]
    compilers = (compiled, None) if compiled else (None,)
    for ragged, how, compiler in itertools.product(candidates, experts, compilers):
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
    """Computes prompts' attention in one call per layer if it gives the same as one call per row; else leaves it.

    `varlen`: torch's own by default.
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
