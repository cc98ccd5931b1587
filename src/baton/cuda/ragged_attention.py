"""One token per row over rows of different lengths, which are read on the device without asking the host.

Two bodies: Triton's kernels, which read what rows hold, and plain torch, which reads `width` columns of every row and
masks the rest. Shapes as in `triton_decode.py`; `stops` 0 is padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from baton.model.device import device_of
from baton.model.sdpa import attention
from baton.model.visibility import Visibility

try:
    from baton.cuda import triton_decode
except ImportError:
    triton_decode = None  # type: ignore[assignment]


class TokenRows(NamedTuple):
    """Where a step's tokens are. `rows` `[n]`: each one's row. `stops` `[n]`: tokens in its row, including it.

    `ring`: if it is not 0, token p is in column p % ring. `width`: columns in use; no row is longer.
    """

    # Not a dataclass: compilers of graphs have long known tuples.
    rows: Tensor
    stops: Tensor
    ring: int
    width: int


class Ragged(Protocol):
    """Attention of single tokens over rows of different lengths."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def reads_width(self) -> bool:
        """Whether a step depends on how wide the part of the rectangle in use is."""

    def keep(self, new: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor], token_rows: TokenRows) -> None:
        """Writes each token's key and value `[n, H, D]` into its row's column stops - 1, or that of a ring."""

    def attend(
        self,
        q: Tensor,
        kept: tuple[Tensor, Tensor],
        token_rows: TokenRows,
        scale: float,
        visibility: Visibility,
        sinks: Tensor | None,
    ) -> Tensor:
        """q `[n, Hq, D]` over what rows keep -> `[n, Hq, Dv]`; the result for padding is finite."""


@dataclass(frozen=True, slots=True)
class InTorch:
    """Masked attention over the first `width` columns of each row."""

    name: str = "masked attention in torch"
    reads_width: bool = True

    def keep(self, new: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor], token_rows: TokenRows) -> None:
        rows, stops, ring, _ = token_rows
        # Padding writes once more what the first token writes: both write the same.
        first = torch.where(stops > 0, torch.arange(len(stops), device=stops.device), 0)
        columns = (stops - 1).clamp(min=0)[first]
        if ring:
            columns = columns % ring
        for buffer, states in zip(kept, new, strict=True):
            buffer.index_put_((rows[first], columns), states[first])

    def attend(
        self,
        q: Tensor,
        kept: tuple[Tensor, Tensor],
        token_rows: TokenRows,
        scale: float,
        visibility: Visibility,
        sinks: Tensor | None,
    ) -> Tensor:
        rows, stops, ring, width = token_rows
        k, v = (buffer[:, :width].index_select(0, rows).transpose(1, 2) for buffer in kept)
        token = (stops - 1).clamp(min=0)[:, None]
        column = torch.arange(k.shape[2], device=q.device)
        in_ring = column <= (token % ring if ring and visibility.chunk else token)
        seen = in_ring if ring else visibility.seen(token, column)
        mask = seen[:, None, None]
        return attention(q[:, :, None], k, v, mask=mask, scale=scale, softcap=visibility.softcap, sinks=sinks)[:, :, 0]


@dataclass(frozen=True, slots=True)
class InTriton:
    """See `triton_decode.py`."""

    name: str = "attention in Triton"
    reads_width: bool = False

    def keep(self, new: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor], token_rows: TokenRows) -> None:
        _keep(*new, *kept, token_rows.rows, token_rows.stops, token_rows.ring)

    def attend(
        self,
        q: Tensor,
        kept: tuple[Tensor, Tensor],
        token_rows: TokenRows,
        scale: float,
        visibility: Visibility,
        sinks: Tensor | None,
    ) -> Tensor:
        rows, stops, ring, _ = token_rows
        attended: Tensor = _attend(
            q, *kept, rows, stops, sinks, scale, visibility.softcap, visibility.window, visibility.chunk, ring > 0
        )
        return attended


# As operations of torch they are one node each for a compiler, which need not read them.


@torch.library.custom_op("baton::keep_tokens", mutates_args=("keys", "values"))
def _keep(
    new_keys: Tensor, new_values: Tensor, keys: Tensor, values: Tensor, rows: Tensor, stops: Tensor, ring: int
) -> None:
    triton_decode.keep(_dense(new_keys), _dense(new_values), keys, values, rows, stops, ring=ring)


@torch.library.custom_op("baton::attend_tokens", mutates_args=())
def _attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    stops: Tensor,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    chunk: int,
    ring: bool,
) -> Tensor:
    visibility = Visibility(window=window, chunk=chunk, softcap=softcap)
    return triton_decode.attend(
        _dense(q), keys, values, rows, stops, scale=scale, visibility=visibility, ring=ring, sinks=sinks
    )


@_attend.register_fake
def _(q: Tensor, keys: Tensor, values: Tensor, *others: Any) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], values.shape[3])


def _dense(states: Tensor) -> Tensor:
    return states if states.stride(-1) == 1 else states.contiguous()


def ragged_backends(device: torch.device) -> tuple[list[Ragged], str]:
    """The backends of this device, the fastest first; and why there are not more, if so."""
    why = device_of(device).why_no_triton(installed=triton_decode is not None)
    return ([InTorch()] if why else [InTriton(), InTorch()]), why
