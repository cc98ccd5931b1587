"""Which engines take nothing more, and how queries leave those that end: with keys and values, or as tokens alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from baton.cluster.follow import Follow
from baton.cluster.prices import PriceBook
from baton.core.values import AUTO


class Leaving:
    """One thread at a time. `handover`: one of `REPLICA_HANDOVER`. `names`: the engines that are asked nothing."""

    def __init__(self, handover: str, prices: PriceBook) -> None:
        self.names: set[str] = set()
        self._handover = handover
        self._prices = prices
        # Those that end and are there, and those of them that were told to give what they have.
        self._ending: set[str] = set()
        self._told: set[str] = set()

    def ends(self, engine: str) -> None:
        """It goes on for a while with what it has."""
        self.names.add(engine)
        self._ending.add(engine)

    def gone(self, engine: str) -> bool:
        """It may still be among the names. Returns whether it was not to end, so that a query may have ended it."""
        unexpected = engine not in self._ending
        self.names.add(engine)
        self._ending.discard(engine)
        self._told.discard(engine)
        return unexpected

    def came(self, engine: str) -> None:
        self.names.discard(engine)
        self._ending.discard(engine)
        self._told.discard(engine)

    def to_give(self, names: Collection[str], follows: Iterable[Follow]) -> dict[str, list[str]]:
        """The engines that are to give what they have now, each with the queries whose keys and values stay behind.

        None while no other engine could take it: until then it goes on where it is.
        """
        if self._handover == "off" or not set(names) - self.names:
            return {}
        told = sorted(self._ending - self._told)
        self._told.update(told)
        all_follows = list(follows)
        return {name: [one.query.id for one in all_follows if one.engine == name and self._bare(one)] for name in told}

    def _bare(self, follow: Follow) -> bool:
        """Whether its keys and values are computed again sooner than they are moved."""
        if self._handover == AUTO:
            return not self._prices.keys_pay(follow.tokens_held, follow.engine)
        return self._handover == "tokens"
