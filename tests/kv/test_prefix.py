"""Stored prefixes: what is found is what was stored for exactly these tokens; bytes have a bound; the oldest leave."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from baton.kv.prefix import PrefixStore
from baton.kv.rectangle import LayerShape, Rectangle, StateShape

TOKEN_BYTES = 4 * (2 + 1)  # float32, as `parts_of` makes them
STATE_BYTES = 4 * 3


def marks(tokens: Sequence[int]) -> list[float]:
    """One number per token, which tells it and all before it."""
    found, mark = [], 7
    for token in tokens:
        mark = (mark * 31 + token + 5) % 1_000_003
        found.append(float(mark))
    return found


def parts_of(tokens: Sequence[int]) -> list[Tensor]:
    """What a row of these tokens keeps in a model with one layer of two heads' keys and one of values."""
    column = torch.tensor(marks(tokens)).view(-1, 1, 1)
    return [column.expand(-1, 2, 1).clone(), -column]


def state_of(tokens: Sequence[int]) -> list[Tensor]:
    """What a row keeps in a recurrent model: as much for any number of tokens."""
    return [torch.full((3,), marks(tokens)[-1])]


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def store_of(room: int = 10_000, *, divisible: bool = True, block: int = 4) -> PrefixStore:
    return PrefixStore(room, divisible=divisible, block=block)


def keep(store: PrefixStore, tokens: Sequence[int], *, whole: bool = False) -> int:
    """Stores all these tokens, of a row that has one more to feed."""
    return store.store([*tokens, 0], parts_of(tokens), len(tokens), whole=whole)


def count_found(store: PrefixStore, tokens: Sequence[int]) -> int:
    """How many tokens are found, checked against what they must be."""
    found = store.find(tokens)
    if found is None:
        return 0
    assert same(found[1], parts_of(tokens[: found[0]]))
    return found[0]


def test_whole_blocks_are_found_and_one_token_is_left_to_feed() -> None:
    store, tokens = store_of(), list(range(10))
    assert keep(store, tokens) == 8
    assert count_found(store, tokens) == 8
    assert count_found(store, [*range(8), 50, 51]) == 8
    assert count_found(store, range(8)) == 4
    assert count_found(store, [*range(7), 50, 51]) == 4
    assert count_found(store, range(4)) == 0
    assert count_found(store, [1, 2, 3, 4, 5]) == 0


def test_what_is_shorter_than_a_block_is_not_stored_unless_it_is_to_be_whole() -> None:
    store, tokens = store_of(), [1, 2, 3]
    assert keep(store, tokens) == 0
    assert store.bytes_used == 0
    assert keep(store, tokens, whole=True) == 3
    assert count_found(store, [1, 2, 3, 4]) == 3
    assert count_found(store, [1, 2, 3]) == 0


def test_of_several_tails_the_longest_that_fits_is_found() -> None:
    store, tokens = store_of(), list(range(12))
    for length in (5, 7, 6):
        keep(store, tokens[:length], whole=True)
    assert [count_found(store, tokens[:length]) for length in (5, 6, 7, 8, 12)] == [4, 5, 6, 7, 7]


def test_prefixes_that_begin_alike_are_stored_once() -> None:
    store = store_of()
    system = list(range(20, 28))
    first, second = [*system, 1, 2, 3, 4], [*system, 5, 6, 7, 8]
    keep(store, first)
    assert store.bytes_used == 12 * TOKEN_BYTES
    keep(store, second)
    assert store.bytes_used == 16 * TOKEN_BYTES
    assert count_found(store, [*first, 0]) == count_found(store, [*second, 0]) == 12


def test_what_is_stored_is_a_copy() -> None:
    store, tokens = store_of(), list(range(8))
    parts = parts_of(tokens)
    store.store([*tokens, 9], parts, 8)
    for part in parts:
        part.fill_(0)
    assert count_found(store, [*tokens, 9]) == 8


@pytest.mark.parametrize("divisible", [True, False])
def test_tokens_whose_hashes_collide_are_told_apart(divisible: bool) -> None:
    first, second = [-1] * 4, [-2] * 4
    assert hash(tuple(first)) == hash(tuple(second))
    store = store_of(divisible=divisible)
    keep(store, first)
    assert store.find([*second, 0]) is None
    keep(store, second)
    assert count_found(store, [*first, 0]) == count_found(store, [*second, 0]) == 4


def test_what_cannot_be_cut_is_found_whole_or_not_at_all() -> None:
    store = store_of(divisible=False)
    for length in (6, 9):
        store.store(range(length + 1), state_of(range(length)), length)
    assert store.bytes_used == 2 * STATE_BYTES
    assert store.find(range(6)) is None
    for length, expected in ((7, 6), (9, 6), (10, 9), (30, 9)):
        found = store.find(range(length))
        assert found is not None
        assert found[0] == expected
        assert same(found[1], state_of(range(expected)))


def test_a_row_of_rings_and_states_goes_through_the_store() -> None:
    shapes = [
        LayerShape(2, 3, 3, window=4),
        LayerShape(states=(StateShape((2, 2), torch.float32),)),
        LayerShape(1, 2, 2),
    ]
    rectangle = Rectangle(shapes, capacity=2, columns=10, dtype=torch.float32, device=torch.device("cpu"))
    parts = [torch.randn(4, 2, 3), torch.randn(4, 2, 3), torch.randn(2, 2), torch.randn(7, 1, 2), torch.randn(7, 1, 2)]
    rectangle.write(0, parts, 7)
    store = store_of(divisible=False)
    assert store.store(range(8), rectangle.view(0), 7) == 7
    rectangle.clear(0)
    found = store.find(range(8))
    assert found is not None
    rectangle.write(1, found[1], found[0])
    assert same(rectangle.view(1), parts)


def test_the_least_recently_used_leave_first_and_the_ends_before_the_beginnings() -> None:
    store = store_of(room=4 * 4 * TOKEN_BYTES)
    long, other, third = [*range(12)], [*range(40, 44)], [*range(60, 64)]
    keep(store, long)
    keep(store, other)
    assert count_found(store, [*long, 0]) == 12  # used again: `other` is older now
    keep(store, third)
    assert count_found(store, [*other, 0]) == 0
    keep(store, other)
    assert count_found(store, [*long, 0]) == 8
    assert count_found(store, [*third, 0]) == 4


def test_as_much_of_a_prefix_is_stored_as_there_is_room_for() -> None:
    store, tokens = store_of(room=3 * 4 * TOKEN_BYTES + 1), list(range(20))
    assert keep(store, tokens) == 12
    assert store.bytes_used == 12 * TOKEN_BYTES
    assert count_found(store, tokens) == 12


def test_what_can_never_fit_makes_nobody_leave() -> None:
    room = 3 * STATE_BYTES
    store = store_of(room=room, divisible=False)
    store.store([1, 5], state_of([1]), 1)
    assert store.store([2, 5], [torch.zeros(room)], 1) == 0
    assert store.find([1, 2]) is not None


def test_what_is_held_stays() -> None:
    store = store_of(room=3 * 4 * TOKEN_BYTES)
    held, other = list(range(6)), list(range(40, 52))
    keep(store, held, whole=True)
    assert store.hold("a", [*held, 9]) == 6
    assert keep(store, other) == 4
    assert not store.limit(0)
    assert store.bytes_used == 6 * TOKEN_BYTES
    assert count_found(store, [*held, 9]) == 6
    store.release("a")
    store.release("a")
    assert store.limit(0)
    assert (store.bytes_used, store.find([*held, 9])) == (0, None)


@pytest.mark.parametrize("divisible", [True, False])
def test_what_is_not_finite_is_not_stored(divisible: bool) -> None:
    store, tokens = store_of(divisible=divisible), list(range(8))
    parts = parts_of(tokens)
    parts[1][6] = torch.nan
    assert store.store([*tokens, 9], parts, 8) == (4 if divisible else 0)
    assert count_found(store, [*tokens, 9]) == (4 if divisible else 0)


@pytest.mark.parametrize("divisible", [True, False])
def test_texts_beyond_the_original_context_are_neither_stored_nor_found(divisible: bool) -> None:
    store = PrefixStore(10_000, divisible=divisible, block=4, longest=9)
    tokens = list(range(12))
    # Of a row that keeps 9 tokens the text has 10.
    assert store.store(tokens[:10], parts_of(tokens[:9]), 9) == 0
    assert store.store(tokens[:9], parts_of(tokens[:8]), 8) == 8
    assert store.find(tokens[:10]) is None
    assert count_found(store, tokens[:9]) == 8


def test_what_was_found_lives_on_when_it_is_evicted() -> None:
    store, tokens = store_of(), list(range(4))
    keep(store, tokens)
    found = store.find([*tokens, 9])
    assert store.limit(0)
    assert found is not None
    assert same(found[1], parts_of(tokens))


BLOCK = 2
# Few tokens, so that prefixes are often alike; -1 and -2 have one hash.
TOKENS = st.lists(st.sampled_from([-1, -2, 3]), min_size=1, max_size=9)


class AnyOrder(RuleBasedStateMachine):
    """The store against a plain list of prefixes, the least recently used first."""

    @initialize(divisible=st.booleans(), room=st.integers(0, 12))
    def begin(self, divisible: bool, room: int) -> None:
        self.divisible = divisible
        self.room = room * TOKEN_BYTES
        self.store = PrefixStore(self.room, divisible=divisible, block=BLOCK)
        self.known: list[tuple[int, ...]] = []
        self.holds: dict[str, list[tuple[int, ...]]] = {}

    def ends(self, tokens: Sequence[int], whole: bool) -> list[int]:
        """Where the runs of these tokens end."""
        blocks = [*range(BLOCK, len(tokens) + 1, BLOCK)] if self.divisible else []
        return [*blocks, len(tokens)] if (whole or not self.divisible) and len(tokens) not in blocks else blocks

    def path(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """What of these is known: blocks one after the other, then the longest tail."""
        found: list[tuple[int, ...]] = []
        usable = tuple(tokens[:-1])
        while (
            self.divisible and (block := usable[: (len(found) + 1) * BLOCK]) in self.known and len(block) % BLOCK == 0
        ):
            if found and block == found[-1]:
                break
            found.append(block)
        start = len(found) * BLOCK
        tails = [usable[:end] for end in range(start + 1, len(usable) + 1) if not self.divisible or end < start + BLOCK]
        known = [tail for tail in tails if tail in self.known]
        return [*found, known[-1]] if known else found

    def size(self, prefix: tuple[int, ...]) -> int:
        if not self.divisible:
            return len(prefix) * TOKEN_BYTES
        return (len(prefix) % BLOCK or BLOCK) * TOKEN_BYTES

    @property
    def bytes(self) -> int:
        return sum(map(self.size, self.known))

    def evict(self, most: int, kept: Sequence[tuple[int, ...]] = ()) -> bool:
        stay = {*kept, *(prefix for path in self.holds.values() for prefix in path)}
        while self.bytes > most:
            leaves = [
                p
                for p in self.known
                if p not in stay
                and not (
                    self.divisible and any(q != p and q[: len(p)] == p and len(p) % BLOCK == 0 for q in self.known)
                )
            ]
            if not leaves:
                return False
            self.known.remove(leaves[0])
        return True

    def touch(self, path: Sequence[tuple[int, ...]]) -> None:
        self.known = [p for p in self.known if p not in path] + list(reversed(path))

    @rule(tokens=TOKENS, whole=st.booleans())
    def put(self, tokens: list[int], whole: bool) -> None:
        path: list[tuple[int, ...]] = []
        for end in self.ends(tokens, whole):
            prefix = tuple(tokens[:end])
            if prefix not in self.known:
                size = self.size(prefix)
                if size > self.room or not self.evict(self.room - size, path):
                    break
                self.known.append(prefix)
            path.append(prefix)
        self.touch(path)
        assert keep(self.store, tokens, whole=whole) == (len(path[-1]) if path else 0)

    @rule(tokens=TOKENS)
    def look(self, tokens: list[int]) -> None:
        path = self.path(tokens)
        self.touch(path)
        assert count_found(self.store, tokens) == (len(path[-1]) if path else 0)

    @rule(name=st.sampled_from("ab"), tokens=TOKENS)
    def hold(self, name: str, tokens: list[int]) -> None:
        self.holds.pop(name, None)
        self.holds[name] = self.path(tokens)
        assert self.store.hold(name, tokens) == (len(self.holds[name][-1]) if self.holds[name] else 0)

    @rule(name=st.sampled_from("ab"))
    def release(self, name: str) -> None:
        self.holds.pop(name, None)
        self.store.release(name)

    @rule(room=st.integers(0, 12))
    def limit(self, room: int) -> None:
        self.room = room * TOKEN_BYTES
        assert self.store.limit(self.room) == self.evict(self.room)

    @invariant()
    def bytes_are_those_of_what_is_known(self) -> None:
        held = sum(part.numel() * part.element_size() for e in self.store._entries.values() for part in e.parts)
        assert self.store.bytes_used == held == self.bytes
        assert len(self.store._entries) == len(self.known)
        kept = {prefix for path in self.holds.values() for prefix in path}
        assert self.store.bytes_held == sum(map(self.size, kept))
        tails = sum(not self.divisible or len(prefix) % BLOCK > 0 for prefix in self.known)
        assert sum(count for lengths in self.store._tails.values() for count in lengths.values()) == tails


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
