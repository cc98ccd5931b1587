"""A stock model over rows of a rectangle on a GPU: decode steps of constant shape, prompts' attention in one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from baton.core.errors import LoadError
from baton.cuda.decode_steps import BUCKETS, Steps
from baton.cuda.ragged_attention import Ragged
from baton.cuda.slots import Slot
from baton.cuda.varlen_prefill import Varlen, packed
from baton.kv.rectangle import Rectangle
from baton.model.device import device_of
from baton.model.execution import WHERE, AttentionBackend, PrefillPlacement
from baton.model.forward import TorchForward
from baton.model.hooked import EXPERTS
from baton.model.port import ForwardStats
from baton.model.visibility import Span


class CudaForward:
    """A `Forward` over a forward in torch, parts of which it replaces.

    `ragged`: attention of decode steps of constant shape; None for steps in torch. `compiled`: the backend of
    torch.compile for these steps. `experts`: how they compute experts, if not as usual. `varlen`: attention of prompts
    in one call per layer; None for one call per row. `gains`: how many times faster prompts are elsewhere than after
    decode steps; None until measured. Raises LoadError if the model's rows cannot be fed so.
    """

    def __init__(
        self,
        torch_forward: TorchForward,
        ragged: Ragged | None = None,
        *,
        compiled: str | None = None,
        experts: str | None = None,
        varlen: Varlen | None = None,
    ) -> None:
        if ragged is not None and not (torch_forward.pads and torch_forward.long_rope_limit is None):
            raise LoadError("its rows need more than a token and a length each step")
        if varlen is not None and torch_forward.backend is not AttentionBackend.RAGGED:
            raise LoadError("its layers do not take our attention as it is")
        self.torch_forward = torch_forward
        self.ragged, self.compiled, self.experts, self.varlen = ragged, compiled, experts, varlen
        self.geometry = torch_forward.geometry
        self.backend = torch_forward.backend
        self.whole_prompts = torch_forward.whole_prompts
        self.long_rope_limit, self.recompute_limit = torch_forward.long_rope_limit, torch_forward.recompute_limit
        self.grid = torch_forward.grid
        self.swaps_rows = ragged is not None or torch_forward.swaps_rows
        self.gains: dict[PrefillPlacement, float] | None = None
        self._prompts = torch_forward if varlen is None else torch_forward.packed(partial(packed, varlen=varlen))
        self._steps: Steps | None = None

    def parts(self) -> list[str]:
        parts = self.torch_forward.parts()
        if self.ragged is not None:
            experts = self.experts or self.torch_forward.hooked.experts
            named = ["decode steps of constant shape", self.ragged.name]
            named += [EXPERTS.get(experts, experts)] if experts else []
            named += [f"compiled by {self.compiled}"] if self.compiled else []
            parts.append(", ".join(named))
        if self.varlen is not None:
            parts.append("prompts' attention in one call per layer")
        if self.gains:
            others = (f"{WHERE[how]} {gain:.2f}x" for how, gain in self.gains.items())
            parts.append(f"prompts {WHERE[self.placement]} (measured: {', '.join(others)})")
        return parts

    @property
    def placement(self) -> PrefillPlacement:
        """Where prompts are computed fastest, as far as measured."""
        gains = {PrefillPlacement.AFTER_DECODE: 1.0, **(self.gains or {})}
        return max(gains, key=lambda how: gains[how])

    def fixed(self, rows: int) -> TorchForward:
        """Returns a forward in torch: here steps have as many rows as are in use; see `Forward.fixed`."""
        return self._prompts.fixed(rows)

    def steps(self, rectangle: Rectangle) -> Steps | None:
        """Steps of constant shape over this rectangle, which keep its address; None if there are none for it."""
        if self.ragged is None or (rectangle.mapped and self.ragged.reads_width):
            return None
        if self._steps is None or self._steps.rectangle is not rectangle:
            capture = device_of(rectangle.device).captures
            how: dict[str, Any] = {"compiled": self.compiled, "experts": self.experts}
            self._steps = Steps(self.torch_forward.hooked, rectangle, self.ragged, capture=capture, **how)
        return self._steps

    def release(self) -> None:
        """Drops the steps over the last rectangle, and so its memory."""
        self._steps = None

    def decode(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        steps = self.steps(rectangle)
        if steps is None or len(spans) > BUCKETS[-1]:
            return self._prompts.decode(rectangle, spans, tokens)
        row_slots = rectangle.row_slots
        fed = zip(spans, tokens, strict=True)
        launched = steps.launch([Slot(row_slots[span.row], token, span.stop) for span, token in fed])
        needed = sum(span.stop for span in spans)
        # The next step leaves its own logits in the same place.
        return launched.logits.clone(), ForwardStats(needed, 0, launched.empty_slots, lambda: None)

    def fill(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        return self._prompts.fill(rectangle, spans, tokens)

    def padded(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        return self._prompts.padded(rectangle, spans, tokens)
