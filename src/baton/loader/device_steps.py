"""The GPU's ways to run a model, each proved: decode steps of constant shape, prompts' attention in one call."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

from baton.core.errors import LoadError
from baton.cuda.forward import CudaForward
from baton.cuda.ragged_attention import Ragged, ragged_backends
from baton.cuda.varlen_prefill import Varlen, of_torch
from baton.loader.proof import Proof, Reason
from baton.loader.selfcheck import mixed_fills
from baton.model.device import device_of
from baton.model.forward import TorchForward
from baton.model.hooked import BY_TOKEN, EXPERTS
from baton.model.probe import own_words

log = logging.getLogger("baton.model")

STEADY = "decode steps of constant shape"
PACKED = "prompts' attention in one call per layer"


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
