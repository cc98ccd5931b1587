"""Stored prefixes: what the model keeps of the first tokens of earlier queries, looked up by these tokens."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from baton.kv.port import KVOffload, KVStore
from baton.kv.prefix_tree import Entry, Key, PrefixTree
from baton.kv.rectangle import Rectangle

BLOCK_TOKENS = 32


class PrefixStore:
    """A tree of runs of tokens, each with its keys and values. Texts that begin alike share entries.

    From a row of at most `divisible_tokens` any beginning can be cut. There a run is a block of `block` tokens, and a
    prefix may be used up to the end of any block. A longer row is stored as one run from its first token, a snapshot,
    which is used whole or not at all. At most `bytes_most` are used; the least recently used entries are dropped first.
    Entries are looked up by hash and compared token by token, as the keys of a dict.

    Texts of one `space` share their beginnings; other spaces never find them. All spaces share the room: a space that
    stores much drives out what others have stored.

    `longest`: longer texts may have other keys for the same first tokens (longrope), so they are neither stored nor
    found. `offload`: if rows are not in the host's memory, stored prefixes are, and are found once they have been
    copied there.
    """

    def __init__(
        self,
        bytes_most: int,
        *,
        divisible_tokens: int,
        block: int = BLOCK_TOKENS,
        longest: int | None = None,
        offload: KVOffload | None = None,
    ) -> None:
        self.bytes_most = bytes_most
        self.bytes_used = 0
        self._offload = offload
        self._storing: deque[tuple[list[Entry], KVStore]] = deque()
        # Of all parts together, if they can be cut; the same for all rows.
        self._token_bytes = 0
        self._longest = sys.maxsize if longest is None else longest
        self._tree = PrefixTree(divisible_tokens, block)
        self._held: dict[str, list[Entry]] = {}

    @property
    def apart(self) -> bool:
        """Whether it is in other memory than rows are, so that dropping entries gives rows nothing."""
        return self._offload is not None

    def find(self, tokens: Sequence[int], space: str = "") -> tuple[int, Sequence[Tensor]] | None:
        """Finds the longest stored prefix that leaves at least one token to feed: its length, and parts for a row.

        The parts are as `Rectangle.write` takes them: to be copied from, not to be changed.
        """
        self._finish_stores()
        path = self._path(tokens, space)
        if not path:
            return None
        self._tree.touch(path)
        cached = sum(entry.tokens for entry in path)
        if self._offload is not None:
            return cached, self._offload.joined([entry.piece for entry in path if entry.piece is not None])
        parts = [entry.parts for entry in path if entry.parts is not None]
        return cached, parts[0] if len(parts) == 1 else [torch.cat(pieces) for pieces in zip(*parts, strict=True)]

    def store(
        self, tokens: Sequence[int], parts: Sequence[Tensor], cached: int, space: str = "", *, whole: bool = False
    ) -> int:
        """Copies what is not stored yet of a row's parts. Returns how many of its tokens are stored or being copied.

        `tokens` are the row's text, and `parts` what it keeps of the first `cached` of them. Fewer are stored if there
        is no room. Last tokens that do not fill a block are stored only with `whole`. Parts that are not finite are not
        stored, so that one broken row cannot break others.
        """
        if len(tokens) > self._longest:
            return 0
        self._finish_stores()
        path: list[Entry] = []
        new: list[Entry] = []
        start = 0
        try:
            for run in self._tree.runs(tokens[:cached], whole):
                before = path[-1] if path else None
                key: Key = (space if before is None else before.serial, run)
                entry = self._tree.get(key)
                if entry is None:
                    entry = self._add(key, before, parts, start)
                    if entry is None:
                        break
                    new.append(entry)
                # Held, so that its successor does not take its room.
                entry.holds += 1
                path.append(entry)
                start += len(run)
        finally:
            for entry in path:
                entry.holds -= 1
            self._tree.touch(path)
        if self._offload is not None and new:
            self._copy_out(self._offload, new, parts, start)
        return start

    def is_due(self, was: int, cached: int) -> bool:
        """Whether a row that had `was` tokens and has `cached` now has completed a block that can be cut from it.

        Blocks are stored at once: later a ring may have overwritten them, and all of a long prompt together would be a
        stall.
        """
        return cached <= self._tree.divisible and was // self._tree.block < cached // self._tree.block

    def hold(self, name: str, tokens: Sequence[int], space: str = "") -> int:
        """Keeps what `find` would return for these tokens until `release(name)`. Returns how many tokens that is.

        Waits for copies that are under way.
        """
        self.release(name)
        self._finish_stores(wait=True)
        path = self._held[name] = self._path(tokens, space)
        for entry in path:
            entry.holds += 1
        return sum(entry.tokens for entry in path)

    def release(self, name: str) -> None:
        """Ends a hold, if there is one. Drops entries that only the hold kept above the limit."""
        for entry in self._held.pop(name, ()):
            entry.holds -= 1
        self._shrink(self.bytes_most)

    @property
    def bytes_held(self) -> int:
        """Bytes that cannot be freed now."""
        held = {entry.serial: entry for path in self._held.values() for entry in path}
        return sum(entry.bytes for entry in held.values())

    def limit(self, bytes_most: int) -> bool:
        """Sets another limit. Entries above it are dropped unless they are held.

        Returns whether the limit is kept now.
        """
        self.bytes_most = bytes_most
        return self._shrink(bytes_most)

    def _path(self, tokens: Sequence[int], space: str) -> list[Entry]:
        """The stored runs that these tokens begin with, without the last token."""
        return [] if len(tokens) > self._longest else self._tree.path(tokens, space)

    def _cut(self, parts: Sequence[Tensor], start: int, length: int) -> list[Tensor]:
        if length > self._tree.divisible:
            return list(parts)
        return [part[start : start + length] for part in parts]

    def _add(self, key: Key, before: Entry | None, parts: Sequence[Tensor], start: int) -> Entry | None:
        """Adds an entry for a run of the row's tokens. Returns None if there is no room for it.

        It has copies of what the row keeps of the run, unless that is to be copied out.
        """
        copied: list[Tensor] | None = None
        if self._offload is None:
            copied = self._cut(parts, start, len(key[1]))
            size = sum(map(_bytes_of, copied))
        elif len(key[1]) > self._tree.divisible:
            size = sum(map(_bytes_of, parts))
        else:
            self._token_bytes = self._token_bytes or sum(_bytes_of(part) // len(part) for part in parts)
            size = len(key[1]) * self._token_bytes
        if size > self.bytes_most or not all(map(_is_finite, copied or ())):
            return None
        if not self._shrink(self.bytes_most - size):
            return None
        if copied is not None:
            copied = [part.clone() for part in copied]
        self.bytes_used += size
        return self._tree.add(key, before, size, copied)

    def _copy_out(self, offload: KVOffload, new: Sequence[Entry], parts: Sequence[Tensor], stop: int) -> None:
        """Begins to copy what a row keeps of these runs, the last of which ends at `stop`; all blocks at once."""
        blocks = [entry for entry in new if entry.tokens == self._tree.block]
        tail = [entry for entry in new if entry.tokens != self._tree.block]
        start = stop - sum(entry.tokens for entry in new)
        try:
            for some in (blocks, tail):
                if not some:
                    continue
                end = start + sum(entry.tokens for entry in some)
                store = offload.out(self._cut(parts, start, end - start), blocks=len(some), checked=True)
                for entry, piece in zip(some, store.pieces, strict=True):
                    entry.piece = piece
                self._storing.append((some, store))
                start = end
        except Exception:
            for entry in reversed(new):
                if entry.piece is None:
                    self._drop(entry)
            raise

    def _finish_stores(self, *, wait: bool = False) -> None:
        """Makes entries ready whose copies have finished, if they are finite and their predecessors are ready."""
        while self._storing and (wait or self._storing[0][1].event.done()):
            entries, store = self._storing.popleft()
            store.event.wait()
            fine = [True] * len(entries) if store.fine is None else store.fine.tolist()
            for entry, is_finite in zip(entries, fine, strict=True):
                if self._tree.get(entry.key) is not entry:
                    continue  # dropped meanwhile
                if is_finite and (entry.before is None or entry.before.ready):
                    entry.ready = True
                else:
                    self._drop(entry)

    def _shrink(self, most: int) -> bool:
        while self.bytes_used > most:
            oldest = self._tree.oldest()
            if oldest is None:
                return False
            self._drop(oldest)
        return True

    def _drop(self, entry: Entry) -> None:
        self._tree.remove(entry)
        self.bytes_used -= entry.bytes
        if self._offload is not None and entry.piece is not None:
            self._offload.give(entry.piece)
        entry.parts = entry.piece = None


def prefix_store(
    rectangle: Rectangle, *, block: int = BLOCK_TOKENS, longest: int | None = None, offload: KVOffload | None = None
) -> PrefixStore:
    """Returns a store for what this rectangle's rows keep. It holds nothing until it has a limit."""
    # While no ring is full, its columns are the row's tokens in order. A state belongs to all tokens together.
    unfilled = min((ring for ring in rectangle.rings if ring), default=sys.maxsize)
    divisible = 0 if any(rectangle.states) else unfilled
    return PrefixStore(0, divisible_tokens=divisible, block=block, longest=longest, offload=offload)


def _bytes_of(part: Tensor) -> int:
    return part.numel() * part.element_size()


def _is_finite(part: Tensor) -> bool:
    """By the sum, which reads it once; a sum that overflows counts as not finite.

    A simulation's tensors have no values.
    """
    return part.is_meta or bool(part.sum(dtype=torch.float32).isfinite())
