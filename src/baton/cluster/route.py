"""Which engine is asked: the one with the least work for it, counted in tokens. A pure function of what is known."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

BLOCK_TOKENS = 32
"""As in stored prefixes (`kv/prefix.py`)."""
MOST_BLOCKS = 2**16


def blocks_of(prompt: Sequence[int], block: int = BLOCK_TOKENS) -> list[bytes]:
    """Digests of a prompt's beginnings, block by block, each of all tokens up to its end. The last token is in none."""
    digest, digests = hashlib.blake2b(digest_size=16), []
    for at in range(0, (len(prompt) - 1) // block * block, block):
        digest.update(array("q", prompt[at : at + block]).tobytes())
        digests.append(digest.digest())
    return digests


def choose(
    prompt_tokens: int, work: Mapping[str, int], held_tokens: Mapping[str, int], asked: Mapping[str, int]
) -> str | None:
    """Returns the engine in which a prompt has the fewest tokens before it. None if there is none.

    `work`: tokens under way in each engine. `held_tokens`: of the prompt, stored there. `asked`: numbers that grow,
    of when each was asked last. Ties go to the one that was asked longest ago, then by name.
    """

    def cost(engine: str) -> tuple[int, int, str]:
        return prompt_tokens - held_tokens.get(engine, 0) + work[engine], asked.get(engine, -1), engine

    return min(work, key=cost, default=None)


class HeldPrefixes:
    """Which engine was asked which beginnings last: a guess at what it has stored, of at most `most` blocks."""

    def __init__(self, most: int = MOST_BLOCKS) -> None:
        self._most = most
        self._engines: OrderedDict[bytes, set[str]] = OrderedDict()

    def tokens(self, blocks: Iterable[bytes]) -> dict[str, int]:
        """How many tokens of a prompt each engine has, as far as known."""
        held: dict[str, int] = {}
        for at, block in enumerate(blocks):
            for engine in self._engines.get(block, ()):
                if held.get(engine, 0) == at * BLOCK_TOKENS:
                    held[engine] = (at + 1) * BLOCK_TOKENS
        return held

    def add(self, engine: str, blocks: Iterable[bytes]) -> None:
        for block in blocks:
            self._engines.setdefault(block, set()).add(engine)
            self._engines.move_to_end(block)
        while len(self._engines) > self._most:
            self._engines.popitem(last=False)

    def forget(self, engine: str) -> None:
        """The engine is gone."""
        for engines in self._engines.values():
            engines.discard(engine)
