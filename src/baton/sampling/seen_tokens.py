"""Which tokens a text has, for penalties. A token is counted once, when it comes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


class Seen:
    """`tokens` so far, of which `prompt_tokens` were the prompt."""

    def __init__(self, tokens: Sequence[int], prompt_tokens: int) -> None:
        ids, first = np.unique(np.array(tokens, np.int64), return_index=True)
        self._size = len(ids)
        self._at = dict(zip(ids.tolist(), range(len(ids)), strict=True))
        self._ids, self._counts = ids, np.zeros_like(first)
        for token in tokens[prompt_tokens:]:
            self._counts[self._at[token]] += 1

    def add(self, token: int) -> None:
        """One more token of the answer."""
        at = self._at.setdefault(token, self._size)
        if at == self._size:
            self._size += 1
            if at == len(self._ids):
                self._ids, self._counts = (np.resize(old, 2 * at + 8) for old in (self._ids, self._counts))
            self._ids[at], self._counts[at] = token, 0
        self._counts[at] += 1

    @property
    def ids(self) -> Numbers:
        """Each token of the text once."""
        return self._ids[: self._size]

    @property
    def counts(self) -> Numbers:
        """How often the answer has each of `ids`."""
        return self._counts[: self._size]
