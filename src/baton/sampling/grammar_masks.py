"""Which tokens rows with a constraint may draw, found out on a thread of its own while the forward runs.

llguidance lets go of Python's lock, and so does a native forward: the work costs the step nothing but a core's time.
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
"""`[vocabulary]`: 0 where a token may be drawn, -inf where not; to be added to logits, which is the quickest way."""

# Eight tokens of a mask, by the byte that says which of them may come.
_EIGHT = np.array([[0.0 if byte >> bit & 1 else -np.inf for bit in range(8)] for byte in range(256)], np.float32)
_NOTHING = "the answer's form allows no token"


class Guide:
    """A query's way through its constraint while it is in a row; only the mask thread moves it.

    It can be made anew at any time: what has been generated is all that it depends on. That grows while no mask is
    being made: nothing is copied for each token.
    """

    def __init__(self, query: Query, generated: list[int]) -> None:
        self.query = query
        self.generated = generated
        self._matcher: Matcher | None = None

    def mask(self) -> Mask:
        """Raises QueryFailed, and Infeasible where nothing is allowed."""
        if self.query.constraint is None:
            raise QueryFailed("there is no constraint")
        if self._matcher is None:
            self._matcher = self.query.constraint.start()
        bits = np.frombuffer(self._matcher.allowed(self.generated), np.uint8)
        if not bits.any():
            raise Infeasible(_NOTHING)
        return _EIGHT.take(bits, axis=0).reshape(-1)


@dataclass(slots=True)
class Found:
    """By query the masks of those rows that have one, and why others cannot go on; `infeasible`: as they were asked."""

    masks: dict[str, Mask] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    infeasible: dict[str, str] = field(default_factory=dict)


class Masks:
    """One thread for all rows."""

    def __init__(self) -> None:
        self._thread = started(1, "baton-masks")

    def begin(self, guides: Sequence[Guide]) -> Future[Found] | None:
        """Of rows that are about to draw; what they have generated does not change until it was waited for."""
        return self._thread.submit(_found, guides) if guides else None


def waited(begun: Future[Found] | None, vocabulary: int) -> Found:
    """What came of it, for logits of so many tokens."""
    found = begun.result() if begun is not None else Found()
    for query_id, mask in found.masks.items():
        found.masks[query_id] = _of_length(mask, vocabulary)
        # Only where more than the model has may come, it may be that nothing of the model may.
        if (mask[vocabulary:] == 0).any() and found.masks[query_id].max() < 0:
            found.infeasible[query_id] = _NOTHING
    return found


def _found(guides: Sequence[Guide]) -> Found:
    found = Found()
    for guide in guides:
        try:
            found.masks[guide.query.id] = guide.mask()
        except Infeasible as error:
            found.infeasible[guide.query.id] = error.message
        except QueryFailed as error:
            found.failed[guide.query.id] = error.message
        except BaseException as error:  # a panic of a Rust library is no Exception
            found.failed[guide.query.id] = f"the answer's form cannot be followed: {type(error).__name__}"
    return found


def _of_length(mask: Mask, vocabulary: int) -> Mask:
    """A model may have fewer tokens than there are bits, or more: those are never drawn."""
    if len(mask) >= vocabulary:
        return mask[:vocabulary]
    return np.concatenate([mask, np.full(vocabulary - len(mask), -np.inf, np.float32)])
