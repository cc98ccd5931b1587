"""Which tokens rows with a constraint may draw, computed on a thread of its own while the forward runs.

llguidance releases Python's lock, and so does a native forward: the work costs the step only a core's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baton.core.constraint import Matcher
from baton.core.errors import Infeasible, QueryFailed
from baton.core.query import Query
from baton.core.threads import started

Mask = NDArray[np.float32]
"""`[vocabulary]`: 0 if a token may be drawn, else -inf; added to logits, which is the quickest way."""

# Eight tokens of a mask, by the byte that says which of them may come.
_EIGHT = np.array([[0.0 if byte >> bit & 1 else -np.inf for bit in range(8)] for byte in range(256)], np.float32)
_NOTHING = "the answer's form allows no token"


class Guide:
    """Follows a query through its constraint while it is in a row; only the mask thread moves it.

    It can be made again at any time, because it depends only on the generated tokens. Their list grows only while no
    mask is being computed, so it is not copied.
    """

    def __init__(self, query: Query, generated: list[int]) -> None:
        self.query = query
        self.generated = generated
        self._matcher: Matcher | None = None

    def mask(self) -> Mask:
        """Raises QueryFailed, and Infeasible if nothing is allowed."""
        if self.query.constraint is None:
            raise QueryFailed("there is no constraint")
        if self._matcher is None:
            self._matcher = self.query.constraint.start()
        bits = np.frombuffer(self._matcher.allowed(self.generated), np.uint8)
        if not bits.any():
            raise Infeasible(_NOTHING)
        return _EIGHT.take(bits, axis=0).reshape(-1)


@dataclass(slots=True)
class MaskResults:
    """The masks by query, and why others cannot go on; `infeasible`: as they were asked."""

    masks: dict[str, Mask] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    infeasible: dict[str, str] = field(default_factory=dict)


class Masks:
    """One thread for all rows."""

    def __init__(self) -> None:
        self._thread = started(1, "baton-masks")

    def begin(self, guides: Sequence[Guide]) -> Future[MaskResults] | None:
        """Begins for rows that are about to draw; their generated tokens must not change until it was waited for."""
        return self._thread.submit(_compute_masks, guides) if guides else None


def waited(begun: Future[MaskResults] | None, vocabulary: int) -> MaskResults:
    """Waits for the result, for logits of so many tokens."""
    results = begun.result() if begun is not None else MaskResults()
    for query_id, mask in results.masks.items():
        results.masks[query_id] = _of_length(mask, vocabulary)
        # Only if a token outside of the model's vocabulary is allowed can all of the model's be forbidden.
        if (mask[vocabulary:] == 0).any() and results.masks[query_id].max() < 0:
            results.infeasible[query_id] = _NOTHING
    return results


def _compute_masks(guides: Sequence[Guide]) -> MaskResults:
    results = MaskResults()
    for guide in guides:
        try:
            results.masks[guide.query.id] = guide.mask()
        except Infeasible as error:
            results.infeasible[guide.query.id] = error.message
        except QueryFailed as error:
            results.failed[guide.query.id] = error.message
        except BaseException as error:  # a panic of a Rust library is not an Exception
            results.failed[guide.query.id] = f"the answer's form cannot be followed: {type(error).__name__}"
    return results


def _of_length(mask: Mask, vocabulary: int) -> Mask:
    """A model may have fewer tokens than there are bits; or more, which are never drawn."""
    if len(mask) >= vocabulary:
        return mask[:vocabulary]
    return np.concatenate([mask, np.full(vocabulary - len(mask), -np.inf, np.float32)])
