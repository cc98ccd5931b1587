"""Prompts that begin alike are computed once: what a query begins with, what is kept of it, who waits for whom."""

from __future__ import annotations

import logging

from baton.core.query import Query
from baton.kv.prefix import PrefixStore
from baton.kv.segment import KVSegment

log = logging.getLogger("baton.engine")


class Prefixes:
    """The engine's dealings with the store of prefixes; without one, every query computes its own prompt.

    Of several choices of one prompt the first computes it but for its last token. The others wait for that and begin
    there; it is held in the store until they have begun. Where the first ends before, they go on by themselves.
    A query finds what was stored in its own space (`Query.prefix_space`); one that has none stores nothing for others.
    `whole_prompts`: the model is fed a prompt at once, so that a prefix is of use only where one token follows it.
    """

    def __init__(self, store: PrefixStore | None = None, *, whole_prompts: bool = False) -> None:
        self._store = store
        self._whole_prompts = whole_prompts
        # By the id of the first choice: the others, until its prompt is there; and then, until they have begun.
        self._awaiting: dict[str, set[str]] = {}
        self._taking: dict[str, set[str]] = {}
        self._sure: dict[str, int] = {}

    @property
    def bytes_used(self) -> int:
        return self._store.bytes_used if self._store is not None else 0

    @property
    def bytes_held(self) -> int:
        """Bytes that cannot be given to queries that are swapped out."""
        return self._store.bytes_held if self._store is not None else 0

    def limit(self, bytes_most: int) -> None:
        """Stored prefixes take at most so many bytes from now on. Where what is held does not fit, nothing is held."""
        if self._store is None or self._store.limit(bytes_most):
            return
        for first in list(self._taking):
            self._close(first)
        self._store.limit(bytes_most)

    def let_go(self) -> bool:
        """Frees all that is stored, what is held too; answers whether that gave rows any memory."""
        if self._store is not None and self._store.apart:
            return False
        had = self.bytes_used > 0
        self.limit(0)
        return had

    def arrived(self, query: Query) -> None:
        if self._store is not None and query.fork_at:
            self._awaiting[query.id] = set()
        elif query.sibling_of in self._awaiting:
            self._awaiting[query.sibling_of].add(query.id)

    @property
    def waiting(self) -> set[str]:
        """Queries that have nothing to do yet: another computes their prompt."""
        return {query_id for others in self._awaiting.values() for query_id in others}

    def sure(self, query_id: str) -> int:
        """How many tokens are held in the store for a waiting query to begin with."""
        return self._sure.get(query_id, 0)

    def begin(self, segment: KVSegment) -> int:
        """Gives a segment that keeps nothing what is stored of its first tokens; answers of how many.

        Its parts are the store's own then, to be copied from at once.
        """
        query = segment.query
        space = _space(query)
        if self._store is None or space is None or segment.cached or query.params.prompt_logprobs is not None:
            return 0
        try:
            prefix = self._store.find(segment.tokens, space) if space else self._store.find(segment.tokens)
        except Exception:
            # It is only a way to save work: there may be no memory to put the pieces together.
            log.exception("the stored prefix of query %s could not be used", query.id)
            return 0
        if prefix is None or (self._whole_prompts and prefix[0] < len(segment.tokens) - 1):
            return 0
        segment.cached, segment.parts = prefix
        if query.id in self._awaiting and segment.cached == query.fork_at:
            self._open(query)
        return segment.cached

    def begun(self, query: Query) -> None:
        """It has a row now, and holds nothing in the store any more."""
        self._sure.pop(query.id, None)
        others = self._taking.get(query.sibling_of, set())
        others.discard(query.id)
        if not others:
            self._close(query.sibling_of)

    def ended(self, query: Query) -> None:
        """It waits for nobody any more, and nobody for it."""
        self._awaiting.pop(query.id, None)
        self._awaiting.get(query.sibling_of, set()).discard(query.id)
        self.begun(query)

    def wants(self, query: Query, was: int, cached: int) -> bool:
        """Whether to `keep` what a query has that kept `was` of its tokens and keeps `cached` now."""
        if self._store is None:
            return False
        if query.prefix_space is None:
            return query.id in self._awaiting and cached >= query.fork_at
        if was < len(query.prompt) and self._store.is_due(was, cached):
            return True
        return was < len(query.prompt) <= cached or (query.id in self._awaiting and cached >= query.fork_at)

    def keep(self, segment: KVSegment) -> None:
        """Stores what can be of a segment, which stays where it is."""
        query = segment.query
        space = _space(query)
        if self._store is None or space is None:
            return
        try:
            if query.id in self._awaiting and segment.cached == query.fork_at:
                self._store.store(segment.tokens, segment.parts, segment.cached, space, whole=True)
            elif not self._whole_prompts and query.prefix_space is not None:
                self._store.store(segment.tokens, segment.parts, segment.cached, space)
        except Exception:
            log.exception("what query %s has computed could not be stored", query.id)
        if query.id in self._awaiting and segment.cached >= query.fork_at:
            self._open(query)

    def _open(self, query: Query) -> None:
        """The prompt of a first choice is there: the others may begin."""
        assert self._store is not None
        others, space = self._awaiting.pop(query.id), _space(query)
        if others and space is not None and self._store.hold(query.id, query.prompt, space) == query.fork_at:
            self._taking[query.id] = others
            self._sure.update(dict.fromkeys(others, query.fork_at))
        else:
            self._store.release(query.id)

    def _close(self, first: str) -> None:
        for query_id in self._taking.pop(first, ()):
            self._sure.pop(query_id, None)
        if self._store is not None:
            self._store.release(first)


def _space(query: Query) -> str | None:
    """Where what a query begins with is stored: where it has no space, only among the choices of its own prompt."""
    return query.prefix_space if query.prefix_space is not None else query.sibling_of or None
