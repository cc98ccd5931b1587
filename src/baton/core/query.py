"""What was asked: prompt tokens, sampling parameters, priority, deadline. It never changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum

from baton.core.constraint import Constraint, OutputFormat
from baton.core.errors import InvalidValue
from baton.core.origin import NO_ORIGIN, Origin
from baton.core.sampling import MOST, within
from baton.core.sampling import SamplingParams as SamplingParams

MAX_USER_CHARACTERS = 256
MAX_SALT_CHARACTERS = 256
BACKGROUND = MOST + 1
"""The priority of queries that wait for all others under every policy. No request may name it."""


class State(StrEnum):
    """Where a query is in its life; `engine/lifecycle.py` has the legal moves."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    READY = "ready"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"
    EXPIRED = "expired"
    MOVED = "moved"
    """It left to go on in another engine; no client sees this as a finish reason."""

    @property
    def live(self) -> bool:
        """Whether the query is still in the engine."""
        return self in _LIVE


_LIVE = frozenset({State.WAITING, State.PREFILLING, State.READY, State.RUNNING})


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """When a prompt is wanted and by whom; nothing special by default.

    `priority`: lower runs first. `deadline_ms`: it is given up so long after its arrival if it is not done. `user`: who
    asked, or ""; at most 256 characters. `queue_seconds`: it is given up so long after its arrival if nothing of it was
    computed; `total_seconds`: in any case. Both are limits of the server, and no policy honours them. `key`: whose key
    it was asked with, as a digest, or "". `cache_salt`: its prefix is shared only with requests that have the same
    salt; 1 to 256 characters, None for none. `origin`: where it comes from. Raises InvalidValue.
    """

    priority: int = 0
    deadline_ms: int | None = None
    user: str = ""
    queue_seconds: float | None = None
    total_seconds: float | None = None
    key: str = ""
    cache_salt: str | None = None
    origin: Origin = NO_ORIGIN

    def __post_init__(self) -> None:
        within("priority", self.priority, -(2**31), MOST, whole=True)
        if self.deadline_ms is not None:
            within("deadline_ms", self.deadline_ms, 1, MOST, whole=True)
        if not isinstance(self.user, str) or len(self.user) > MAX_USER_CHARACTERS:
            raise InvalidValue(f"user must be a text of at most {MAX_USER_CHARACTERS} characters", param="user")
        salt = self.cache_salt
        if salt is not None and not (isinstance(salt, str) and 1 <= len(salt) <= MAX_SALT_CHARACTERS):
            raise InvalidValue(
                f"cache_salt must be a text of 1 to {MAX_SALT_CHARACTERS} characters", param="cache_salt"
            )


@dataclass(frozen=True, slots=True)
class Query:
    """One prompt to be continued once.

    `prompt` are token ids, at least one. `seed` is resolved (never None), so that a draw is a function of the query.
    `limit_tokens` is the most tokens that may be generated, resolved from `params.max_tokens` and the context.
    `priority`: lower runs first. `deadline` is a time on the engine's clock, or None. So are the limits `start_by`, for
    its first computation, and `end_by`. `user`: who asked, or ""; policies may share the rows between users.
    `constraint`: what its tokens must be, compiled from `form`. `visible_special_tokens`: special tokens that its text
    contains all the same. `sibling_of`: the id of the first of several choices that may share the computation of one
    prompt; the first has its own id, and a query alone has "". `prefix_space`: queries of one space share stored
    prefixes; None: with no query. `origin`: where it comes from.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    limit_tokens: int
    arrived: float
    priority: int = 0
    deadline: float | None = None
    user: str = ""
    sibling_of: str = ""
    prefix_space: str | None = ""
    start_by: float | None = None
    end_by: float | None = None
    constraint: Constraint | None = field(default=None, compare=False)
    form: OutputFormat | None = None
    visible_special_tokens: frozenset[int] = frozenset()
    origin: Origin = NO_ORIGIN

    @property
    def background(self) -> bool:
        """Whether it waits for all others. Then it does not count towards `max_waiting`."""
        return self.priority == BACKGROUND

    @property
    def fork_at(self) -> int:
        """After so many tokens of its prompt it pauses, so that other choices can begin there. 0: it does not pause."""
        return len(self.prompt) - 1 if self.sibling_of == self.id else 0

    def overdue(self, now: float, *, begun: bool) -> str | None:
        """Why the query is to be given up at this time; None if it is not. `begun`: something of it was computed."""
        if self.deadline is not None and self.deadline < now:
            return "the query's deadline has passed"
        took = now - self.arrived
        if self.end_by is not None and self.end_by < now:
            most = self.end_by - self.arrived
            return f"the query took {took:.1f} s, the limit is {most:g} s (--query-timeout)"
        if self.start_by is not None and self.start_by < now and not begun:
            most = self.start_by - self.arrived
            return f"the query waited {took:.1f} s for a row, the limit is {most:g} s (--queue-timeout)"
        return None

    def overdue_after(self, *, begun: bool) -> float:
        """The time up to which `overdue` returns None."""
        times = (self.deadline, self.end_by, None if begun else self.start_by)
        return min((time for time in times if time is not None), default=math.inf)


def in_background(query: Query) -> Query:
    """Returns the query behind all others, with no limit on its waiting."""
    return replace(query, priority=BACKGROUND, start_by=None, end_by=None)


NO_OPTIONS = RequestOptions()
