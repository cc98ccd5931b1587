"""Computes prompts that begin alike once: which prefix a query begins with, what is kept, and who waits for whom."""

from __future__ import annotations

import logging

from baton.core.query import Query
from baton.kv.prefix import PrefixStore
from baton.kv.segment import KVSegment

log = logging.getLogger("baton.engine")


class Prefixes:
    """The engine's use of the prefix store. Without a store, every query computes its own prompt.

    Of several choices of one prompt the first computes it, except its last token. The others wait for that and begin
    there; the prompt is held in the store until they have begun. If the first ends before, they compute it themselves.
    A query finds what was stored in its own space (`Query.prefix_space`); a query without one stores nothing for
    others. `whole_prompts`: the model is fed a prompt at once, so a prefix is of use only if one token follows it.
    """

    def __init__(self, store: PrefixStore | None = None, *, whole_prompts: bool = False) -> None:
        self._store = store
        self._whole_prompts = whole_prompts
        # By the id of the first choice: the other choices, until its prompt is computed, and then until they have
        # begun.
        self._awaiting: dict[str, set[str]] = {}
        self._taking: dict[str, set[str]] = {}
        self._guaranteed: dict[str, int] = {}

    @property
    def bytes_used(self) -> int:
        return self._store.bytes_used if self._store is not None else 0

    @property
    def bytes_held(self) -> int:
        """Bytes that swapped-out queries cannot get."""
        return self._store.bytes_held if self._store is not None else 0

    def limit(self, bytes_most: int) -> None:
        """Limits stored prefixes to so many bytes from now on. If held prefixes exceed it, none is held any more."""
        if self._store is None or self._store.limit(bytes_most):
            return
        for first in list(self._taking):
            self._close(first)
        self._store.limit(bytes_most)

    def let_go(self) -> bool:
        """Frees everything that is stored, even if it is held. Returns whether rows got any memory from that."""
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
        """Queries that have nothing to do yet, because another computes their prompt."""
        return {query_id for others in self._awaiting.values() for query_id in others}

    def guaranteed(self, query_id: str) -> int:
        """How many tokens are held in the store for a waiting query."""
        return self._guaranteed.get(query_id, 0)

    def begin(self, segment: KVSegment) -> int:
        """Gives an empty segment the longest stored prefix of its tokens. Returns the prefix's length.

        Its parts are the store's own, and must be copied from at once.
        """
        query = segment.query
        space = _space(query)
        if self._store is None or space is None or segment.cached or query.params.prompt_logprobs is not None:
            return 0
        try:
            prefix = self._store.find(segment.tokens, space) if space else self._store.find(segment.tokens)
        except Exception:
            # A prefix only saves work, and there may be no memory to join its pieces.
            log.exception("the stored prefix of query %s could not be used", query.id)
            return 0
        if prefix is None or (self._whole_prompts and prefix[0] < len(segment.tokens) - 1):
            return 0
        segment.cached, segment.parts = prefix
        if query.id in self._awaiting and segment.cached == query.fork_at:
            self._open(query)
        return segment.cached

    def begun(self, query: Query) -> None:
        """The query has a row now, and its prefix is not held any more."""
        self._guaranteed.pop(query.id, None)
        others = self._taking.get(query.sibling_of, set())
        others.discard(query.id)
        if not others:
            self._close(query.sibling_of)

    def ended(self, query: Query) -> None:
        """The query waits for no other any more, and no other for it."""
        self._awaiting.pop(query.id, None)
        self._awaiting.get(query.sibling_of, set()).discard(query.id)
        self.begun(query)

    def wants(self, query: Query, was: int, cached: int) -> bool:
        """Whether to `keep` more of a query that had `was` cached tokens and has `cached` now."""
        if self._store is None:
            return False
        if query.prefix_space is None:
            return query.id in self._awaiting and cached >= query.fork_at
        if was < len(query.prompt) and self._store.is_due(was, cached):
            return True
        return was < len(query.prompt) <= cached or (query.id in self._awaiting and cached >= query.fork_at)

    def keep(self, segment: KVSegment) -> None:
        """Stores what can be stored of a segment, which stays where it is."""
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
        """The prompt of a first choice is computed: the others may begin."""
        assert self._store is not None
        others, space = self._awaiting.pop(query.id), _space(query)
        if others and space is not None and self._store.hold(query.id, query.prompt, space) == query.fork_at:
            self._taking[query.id] = others
            self._guaranteed.update(dict.fromkeys(others, query.fork_at))
        else:
            self._store.release(query.id)

    def _close(self, first: str) -> None:
        for query_id in self._taking.pop(first, ()):
            self._guaranteed.pop(query_id, None)
        if self._store is not None:
            self._store.release(first)


def _space(query: Query) -> str | None:
    """The space of a query's prefix. A query without a space shares only with the choices of its own prompt."""
    return query.prefix_space if query.prefix_space is not None else query.sibling_of or None
