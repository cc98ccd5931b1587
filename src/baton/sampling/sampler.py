"""Draws each row's next token: penalties, constraint, temperature, top-k, top-p, min-p, and noise that is a hash."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from baton.sampling.draw import Draw
from baton.sampling.on_device import exact, random_tokens
from baton.sampling.on_host import Floats, random_token
from baton.sampling.seen_tokens import Seen

__all__ = ["Draw", "Sampler"]

_MOST = torch.finfo(torch.float32).max


class Sampler:
    """`end_ids`: tokens that end a text; they cannot be drawn before `min_tokens`.

    `sees_logits`: it also uses logits otherwise, so a device must not draw in its place.
    """

    sees_logits = False

    def __init__(self, end_ids: Sequence[int]) -> None:
        self._end_ids = tuple(end_ids)

    def __call__(self, logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
        """The next token of each row of `[n, vocabulary]` float32 logits.

        None if a row's logits are not finite, or if its draw leaves no token.
        """
        if logits.device.type == "cpu" or not exact(logits.device.type):
            return self._row_by_row(logits.cpu().numpy(), draws)
        return self._together(logits, draws)

    def _row_by_row(self, rows: Floats, draws: Sequence[Draw]) -> list[int | None]:
        """Draws by `on_host.py`."""
        best = rows.argmax(-1)
        # If any value is infinite or NaN, argmax returns it.
        finite = np.isfinite(rows[np.arange(len(rows)), best]) & np.isfinite(rows.min(-1))
        return [
            self._one(row, draw, token) if fine else None
            for row, draw, token, fine in zip(rows, draws, best.tolist(), finite.tolist(), strict=True)
        ]

    def _one(self, row: Floats, draw: Draw, best: int) -> int | None:
        if draw.shapes:
            row = row.copy()
            self._shape(torch.from_numpy(row), draw)
        if draw.mask is not None:
            row = row + draw.mask
        if draw.shapes or draw.mask is not None:
            best = int(row.argmax())
            if not np.isfinite(row[best]):
                return None
        return best if draw.params.greedy else random_token(row, draw)

    def _together(self, logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
        """Draws by `on_device.py`."""
        fine = logits.sum(-1).isfinite()
        if any(draw.shapes or draw.mask is not None for draw in draws):
            logits = logits.clone()
            for row, draw in zip(logits, draws, strict=True):
                if draw.shapes:
                    self._shape(row, draw)
                if draw.mask is not None:
                    row += torch.from_numpy(draw.mask).to(row.device)
            fine &= logits.amax(-1).isfinite()
        best = logits.argmax(-1)
        drawn = [row for row, draw in enumerate(draws) if not draw.params.greedy]
        if drawn:
            best[drawn] = random_tokens(logits[drawn], [draws[row] for row in drawn])
        tokens = best.tolist()
        return [token if may else None for token, may in zip(tokens, fine.tolist(), strict=True)]

    def _shape(self, row: Tensor, draw: Draw) -> None:
        """Changes one row's logits `[vocabulary]` in place: bias, penalties, the tokens forbidden by min_tokens."""
        params = draw.params
        if draw.penalises:
            self._penalise(row, draw)
        for token, bias in (params.logit_bias or {}).items():
            row[token] += bias
        if len(draw.tokens) - draw.prompt_tokens < params.min_tokens:
            # A tokenizer may have more tokens than the model; those are never drawn.
            row[[end for end in (*self._end_ids, *params.stop_token_ids) if 0 <= end < len(row)]] = -torch.inf

    def _penalise(self, row: Tensor, draw: Draw) -> None:
        params, history = draw.params, draw.seen or Seen(draw.tokens, draw.prompt_tokens)
        seen, counts = (torch.from_numpy(some).to(row.device) for some in (history.ids, history.counts))
        if params.repetition_penalty != 1:
            old = row[seen]
            new = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
            # An overflow stays finite, because two infinities could not be compared.
            row[seen] = new.clamp(-_MOST, _MOST)
        if params.frequency_penalty or params.presence_penalty:
            row[seen] -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
