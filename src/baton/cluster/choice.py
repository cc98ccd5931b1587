"""Which engine each query is asked of: by what engines hold, what is under way there, and what they are for."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from baton.cluster.follow import Follow
from baton.cluster.prices import PriceBook
from baton.cluster.route import HeldPrefixes, blocks_of, choose
from baton.cluster.wire import FIRST_TOKEN
from baton.engine.port import Stats


class Choice:
    """One thread at a time."""

    def __init__(self, prices: PriceBook) -> None:
        self._held = HeldPrefixes()
        self._prices = prices
        self._of_others: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._count = 0

    def forget(self, engine: str) -> None:
        """The engine is gone."""
        self._held.forget(engine)
        self._asked.pop(engine, None)
        self._of_others.pop(engine, None)

    def heard(self, engine: str, stats: Stats, follows: Collection[Follow]) -> None:
        """What an engine has, of which the rest is other fronts'. `follows`: all live queries of this one."""
        ours = sum(follow.engine == engine for follow in follows)
        self._of_others[engine] = max(0, stats.submitted - sum(stats.outcomes.values()) - ours)

    def engine_for(
        self, follow: Follow, follows: Mapping[str, Follow], free: set[str], prefill: set[str]
    ) -> tuple[str | None, str]:
        """The engine for a query, and until when it stays there.

        A new prompt goes to an engine for prompts, if its keys and values are moved sooner than computed elsewhere.
        Choices of one prompt go to one engine, while they are new and it is free. `follows`: all live queries. `free`:
        the engines that take queries. `prefill`: those for prompts.
        """
        decode = free - prefill
        some = decode or free
        if not follow.tokens and free & prefill and self._prices.keys_pay(len(follow.query.prompt)):
            some = free & prefill
        engine = self._beside(follow, follows, free) or self._least(follow, follows, some)
        return engine, FIRST_TOKEN if engine in prefill and decode and not follow.tokens else ""

    def _beside(self, follow: Follow, follows: Mapping[str, Follow], free: set[str]) -> str | None:
        first = follows.get(follow.query.sibling_of)
        beside = None if first is None or first is follow or follow.tokens else first.engine
        return beside if beside in free else None

    def _least(self, follow: Follow, follows: Mapping[str, Follow], names: set[str]) -> str | None:
        # What other fronts have there is taken to be as large as this one.
        work = {name: self._of_others.get(name, 0) * follow.tokens_left for name in names}
        for other in follows.values():
            if other.engine in work:
                work[other.engine] += other.tokens_left
        blocks = blocks_of(follow.query.prompt)
        engine = choose(len(follow.query.prompt), work, self._held.tokens(blocks), self._asked)
        if engine is not None:
            self._held.add(engine, blocks)
            self._count += 1
            self._asked[engine] = self._count
        return engine
