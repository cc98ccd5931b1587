"""Runs of tokens, each known by what comes before it: a tree, in which texts that begin alike share entries."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from baton.kv.port import KVPiece

Before = int | str
"""The serial of the entry before; for the first run of a text, the name of its space."""
Key = tuple[Before, tuple[int, ...]]
"""The entry before a run of tokens, and the tokens."""


@dataclass(eq=False, slots=True)
class Entry:
    """What a row keeps of a run of tokens, after those of the entry before it: parts, or a piece on the host.

    `ready`: it is copied, and finite; until then it is not found.
    """

    key: Key
    serial: int
    bytes: int
    before: Entry | None
    parts: list[Tensor] | None = None
    piece: KVPiece | None = None
    ready: bool = False
    holds: int = 0

    @property
    def tokens(self) -> int:
        return len(self.key[1])


class PrefixTree:
    """Finds runs, and keeps them in the order of their last use.

    A text of at most `divisible` tokens is cut into blocks of `block` tokens, and one run that is shorter; a longer one
    is a run of its own, a snapshot. Texts of different spaces share nothing.
    """

    def __init__(self, divisible_tokens: int, block: int) -> None:
        # If no block fits, there are only snapshots.
        self.divisible = divisible_tokens if divisible_tokens >= block else 0
        self.block = block if self.divisible else sys.maxsize
        self._serials = count(1)
        # Least recently used first. A used entry moves behind its successors, and a hold includes all entries up to the
        # root. So the first entry that is not held has no successors in the tree.
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        # How many runs that are not blocks follow an entry (by its serial), by their length. Snapshots follow the name
        # of their space.
        self._tails: defaultdict[Before, Counter[int]] = defaultdict(Counter)

    def get(self, key: Key) -> Entry | None:
        return self._entries.get(key)

    def oldest(self) -> Entry | None:
        """The least recently used entry that is not held."""
        return next((entry for entry in self._entries.values() if not entry.holds), None)

    def add(self, key: Key, before: Entry | None, bytes: int, parts: list[Tensor] | None) -> Entry:
        """Adds a run, which is ready if it has parts."""
        entry = Entry(key, next(self._serials), bytes, before, parts, ready=parts is not None)
        self._entries[key] = entry
        if entry.tokens != self.block:
            self._tails[key[0]][entry.tokens] += 1
        return entry

    def remove(self, entry: Entry) -> None:
        del self._entries[entry.key]
        before, run = entry.key
        if len(run) != self.block:
            self._tails[before] -= Counter({len(run): 1})
            if not self._tails[before]:
                del self._tails[before]

    def touch(self, path: Sequence[Entry]) -> None:
        """These entries, each of which follows the one before it, were used now."""
        for entry in reversed(path):
            self._entries.move_to_end(entry.key)

    def path(self, tokens: Sequence[int], space: str) -> list[Entry]:
        """The stored runs that these tokens begin with, without the last token."""
        snapshot = self._tail(tokens, 0, space)
        if snapshot is not None and snapshot.tokens > self.divisible:
            # A snapshot is longer than any blocks together.
            return [snapshot]
        start = 0
        before: Before = space
        path: list[Entry] = []
        while start + self.block < len(tokens):
            entry = self._entries.get((before, tuple(tokens[start : start + self.block])))
            if entry is None or not entry.ready:
                break
            path.append(entry)
            start, before = start + self.block, entry.serial
        tail = self._tail(tokens, start, before)
        return path if tail is None else [*path, tail]

    def _tail(self, tokens: Sequence[int], start: int, before: Before) -> Entry | None:
        """The longest run that is not a block, follows this entry, and equals these tokens from `start` on."""
        lengths = (length for length in self._tails.get(before, ()) if start + length < len(tokens))
        for length in sorted(lengths, reverse=True):
            entry = self._entries.get((before, tuple(tokens[start : start + length])))
            if entry is not None and entry.ready:
                return entry
        return None

    def runs(self, tokens: Sequence[int], whole: bool) -> Iterator[tuple[int, ...]]:
        """The runs that a text is cut into. `whole`: with the last one, if it does not fill a block."""
        if len(tokens) > self.divisible:
            yield tuple(tokens)
            return
        end = len(tokens) if whole else len(tokens) // self.block * self.block
        for start in range(0, end, self.block):
            yield tuple(tokens[start : start + self.block])
