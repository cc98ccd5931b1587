"""Chooses how a model is run: the fastest way in which rows of a rectangle give what the model gives alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.cuda.ragged_attention import ragged_backends
from baton.loader.device_steps import in_steady_steps, with_packed_prompts
from baton.loader.formats import PLAIN, ROUNDED_TOLERANCE, WeightFormat
from baton.loader.kept_steps import StepCache
from baton.loader.proof import Proof, Reason, proof_of
from baton.loader.selfcheck import our_logits
from baton.loader.structure import Structure, hooked, structure
from baton.model.device import device_of, free_bytes
from baton.model.forward import TorchForward
from baton.model.packed_layers import packed_layers
from baton.model.packed_linear import not_computed
from baton.model.port import Forward
from baton.model.probe import own_words
from baton.native.forward import NativeForward, check_native
from baton.native.lower import lower
from baton.native.program import Program
from baton.native.record import record

# Ways to run a model, in the words that people read.
NATIVE = "steps as one native call"


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
