"""Stored prefixes: what is found is what was stored for exactly these tokens; bytes have a bound; the oldest leave."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from torch import Tensor

from baton.cuda.offload import HostOffload
from baton.kv.prefix import PrefixStore, prefix_store
from baton.kv.rectangle import LayerShape, Rectangle, StateShape
from random_batch import late_offload

TOKEN_BYTES = 4 * (2 + 1)  # float32, as `parts_of` makes them
STATE_BYTES = 4 * 3
RING = 8
ALWAYS, NEVER = sys.maxsize, 0
EITHER_WAY = pytest.mark.parametrize("divisible_tokens", [ALWAYS, NEVER])


def marks(tokens: Sequence[int]) -> list[float]:
    """One number per token, which identifies it and all before it."""
    numbers, mark = [], 7
    for token in tokens:
        mark = (mark * 31 + token + 5) % 1_000_003
        numbers.append(float(mark))
    return numbers


def parts_of(tokens: Sequence[int]) -> list[Tensor]:
    """What a row of these tokens keeps in a model with one layer of two heads' keys and one of values."""
    column = torch.tensor(marks(tokens)).view(-1, 1, 1)
    return [column.expand(-1, 2, 1).clone(), -column]


def ringed_parts_of(tokens: Sequence[int], ring: int = RING) -> list[Tensor]:
    """What a row of these tokens keeps if the second layer's part is a ring: token p in its column p % `ring`."""
    keys, values = parts_of(tokens)
    kept = torch.empty(min(len(tokens), ring), 1, 1)
    for position, value in enumerate(values):
        kept[position % ring] = value
    return [keys, kept]


def state_of(tokens: Sequence[int]) -> list[Tensor]:
    """What a row keeps in a recurrent model: as much for any number of tokens."""
    return [torch.full((3,), marks(tokens)[-1])]


def same(parts: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(f, e) for f, e in zip(parts, expected, strict=True))


@pytest.fixture(autouse=True, params=["here", "apart"])
def offload(request: pytest.FixtureRequest) -> HostOffload | None:
    """Stored beside the rows; if those are on a device, on the host, when next asked for."""
    _places[:] = [None if request.param == "here" else late_offload(0)]
    return _places[0]


_places: list[HostOffload | None] = []


def store_of(room: int = 10_000, *, divisible_tokens: int = ALWAYS, block: int = 4) -> PrefixStore:
    return PrefixStore(room, divisible_tokens=divisible_tokens, block=block, offload=_places[0])


def keep(store: PrefixStore, tokens: Sequence[int], *, whole: bool = False) -> int:
    """Stores all these tokens, of a row that has one more to feed."""
    return store.store([*tokens, 0], parts_of(tokens), len(tokens), whole=whole)


def count_found(store: PrefixStore, tokens: Sequence[int]) -> int:
    """How many tokens are found, checked against what they must be."""
    prefix = store.find(tokens)
    if prefix is None:
        return 0
    assert same(prefix[1], parts_of(tokens[: prefix[0]]))
    return prefix[0]


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


@EITHER_WAY
def test_tokens_whose_hashes_collide_are_told_apart(divisible_tokens: int) -> None:
    first, second = [-1] * 4, [-2] * 4
    assert hash(tuple(first)) == hash(tuple(second))
    store = store_of(divisible_tokens=divisible_tokens)
    keep(store, first)
    assert store.find([*second, 0]) is None
    keep(store, second)
    assert count_found(store, [*first, 0]) == count_found(store, [*second, 0]) == 4


def test_what_cannot_be_cut_is_found_whole_or_not_at_all() -> None:
    store = store_of(divisible_tokens=NEVER)
    for length in (6, 9):
        store.store(range(length + 1), state_of(range(length)), length)
    assert store.bytes_used == 2 * STATE_BYTES
    assert store.find(range(6)) is None
    for length, expected in ((7, 6), (9, 6), (10, 9), (30, 9)):
        prefix = store.find(range(length))
        assert prefix is not None
        assert prefix[0] == expected
        assert same(prefix[1], state_of(range(expected)))


def keep_ringed(store: PrefixStore, tokens: Sequence[int], *, whole: bool = False) -> int:
    return store.store([*tokens, 0], ringed_parts_of(tokens), len(tokens), whole=whole)


def count_ringed(store: PrefixStore, tokens: Sequence[int]) -> int:
    prefix = store.find(tokens)
    if prefix is None:
        return 0
    assert same(prefix[1], ringed_parts_of(tokens[: prefix[0]]))
    return prefix[0]


def test_a_row_whose_ring_is_not_full_is_stored_in_blocks() -> None:
    store, tokens = store_of(divisible_tokens=RING), list(range(20, 30))
    assert keep_ringed(store, tokens[:7]) == 4
    assert store.bytes_used == 4 * TOKEN_BYTES
    assert keep_ringed(store, tokens[:8]) == 8
    assert store.bytes_used == 8 * TOKEN_BYTES
    assert [count_ringed(store, tokens[:count]) for count in (4, 5, 8, 9, 10)] == [0, 4, 4, 8, 8]
    assert count_ringed(store, [*tokens[:6], 50, 51, 52]) == 4


def test_a_row_whose_ring_is_full_is_stored_whole_beside_its_blocks() -> None:
    store, tokens = store_of(divisible_tokens=RING), list(range(20, 40))
    keep_ringed(store, tokens[:8])
    assert keep_ringed(store, tokens[:13]) == 13
    # Two blocks; 13 tokens' keys and a full ring.
    assert store.bytes_used == 8 * TOKEN_BYTES + 13 * 8 + RING * 4
    assert [count_ringed(store, tokens[:count]) for count in (9, 13, 14, 20)] == [8, 8, 13, 13]
    # Another text goes its own way within the snapshot: the blocks are there.
    assert count_ringed(store, [*tokens[:10], 50, 51, 52, 53, 54]) == 8
    # Of two snapshots the longer one that fits.
    keep_ringed(store, tokens[:15])
    assert [count_ringed(store, tokens[:count]) for count in (15, 16)] == [13, 15]


def test_a_tail_is_whole_only_while_the_ring_is_not_full() -> None:
    store, tokens = store_of(divisible_tokens=RING), list(range(20, 40))
    assert keep_ringed(store, tokens[:7], whole=True) == 7
    assert keep_ringed(store, tokens[:9], whole=True) == 9
    assert [count_ringed(store, tokens[:count]) for count in (7, 8, 9, 10)] == [4, 7, 7, 9]


def test_a_ring_smaller_than_a_block_leaves_snapshots_only() -> None:
    store, tokens = store_of(divisible_tokens=3), [1, 2, 3, 4, 5]
    for length in (3, 5):
        assert store.store([*tokens[:length], 0], ringed_parts_of(tokens[:length], 3), length) == length
    for length, expected in ((4, 3), (5, 3), (6, 5)):
        prefix = store.find([*tokens, 9][:length])
        assert prefix is not None
        assert prefix[0] == expected
        assert same(prefix[1], ringed_parts_of(tokens[:expected], 3))
    assert not store.is_due(0, 3)


@pytest.mark.parametrize(
    ("was", "cached", "due", "ring_due"),
    [
        (0, 4, True, True),
        (0, 3, False, False),  # no block is complete
        (4, 7, False, False),  # nor another one
        (4, 8, True, True),
        (0, 8, True, True),
        (0, 9, True, False),  # the ring has overwritten its first token
        (8, 12, True, False),
    ],
)
def test_blocks_are_stored_on_the_way(was: int, cached: int, due: bool, ring_due: bool) -> None:
    assert store_of(divisible_tokens=ALWAYS).is_due(was, cached) is due
    assert store_of(divisible_tokens=RING).is_due(was, cached) is ring_due
    assert not store_of(divisible_tokens=NEVER).is_due(was, cached)


FULL, SMALL, LARGE = LayerShape(1, 2, 2), LayerShape(2, 3, 3, window=4), LayerShape(2, 3, 3, window=6)
STATE = LayerShape(states=(StateShape((2, 2), torch.float32),))


def rectangle_of(*shapes: LayerShape) -> Rectangle:
    return Rectangle(shapes, capacity=2, columns=10, dtype=torch.float32, device=torch.device("cpu"))


def fill(rectangle: Rectangle, row: int, tokens: Sequence[int], start: int = 0) -> None:
    """Writes each token's mark in the places of a model's keys and values."""
    for position, mark in list(enumerate(marks(tokens)))[start:]:
        for buffers in zip(rectangle.keys, rectangle.values, rectangle.rings, strict=True):
            ring = buffers[2] or rectangle.columns
            for buffer in buffers[:2]:
                buffer[row, position % ring] = mark
    rectangle.lens[row] = len(tokens)


@pytest.mark.parametrize(
    ("shapes", "cut", "whole"),
    [
        ((FULL,), {4: 4, 5: 4, 6: 6, 9: 8}, {}),
        ((FULL, LARGE), {4: 4, 5: 4, 6: 6}, {7: 7, 9: 9}),
        # The smallest ring is full first.
        ((LARGE, SMALL, FULL), {3: 2, 4: 4}, {5: 5, 9: 9}),
        ((LARGE, STATE), {}, {2: 2, 4: 4, 9: 9}),
    ],
)
def test_what_a_rectangles_rows_keep_says_how_long_they_can_be_cut(
    shapes: tuple[LayerShape, ...], cut: dict[int, int], whole: dict[int, int]
) -> None:
    tokens = list(range(3, 13))
    for length, expected in {**cut, **whole}.items():
        rectangle = rectangle_of(*shapes)
        store = prefix_store(rectangle, block=2, offload=_places[0])
        store.limit(10_000)
        fill(rectangle, 0, tokens[:length])
        assert store.store(tokens[: length + 1], rectangle.view(0), length) == expected
        held = sum(part.numel() * part.element_size() for part in rectangle.view(0))
        assert store.bytes_used == (held if length in whole else held // length * expected)
        # Another row begins with it, and goes on to what the first one is.
        prefix = store.find([*tokens[:expected], 0])
        assert prefix is not None
        rectangle.write(1, prefix[1], prefix[0])
        fill(rectangle, 1, tokens[:length], start=prefix[0])
        assert same(rectangle.view(1), rectangle.view(0))


def test_a_row_of_rings_and_states_goes_through_the_store() -> None:
    shapes = [
        LayerShape(2, 3, 3, window=4),
        LayerShape(states=(StateShape((2, 2), torch.float32),)),
        LayerShape(1, 2, 2),
    ]
    rectangle = Rectangle(shapes, capacity=2, columns=10, dtype=torch.float32, device=torch.device("cpu"))
    parts = [torch.randn(4, 2, 3), torch.randn(4, 2, 3), torch.randn(2, 2), torch.randn(7, 1, 2), torch.randn(7, 1, 2)]
    rectangle.write(0, parts, 7)
    store = store_of(divisible_tokens=NEVER)
    assert store.store(range(8), rectangle.view(0), 7) == 7
    rectangle.clear(0)
    prefix = store.find(range(8))
    assert prefix is not None
    rectangle.write(1, prefix[1], prefix[0])
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
    store = store_of(room=room, divisible_tokens=NEVER)
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


@EITHER_WAY
def test_what_is_not_finite_is_not_stored(divisible_tokens: int) -> None:
    store, tokens = store_of(divisible_tokens=divisible_tokens), list(range(8))
    parts = parts_of(tokens)
    parts[1][6] = torch.nan
    stored = store.store([*tokens, 9], parts, 8)
    # Of what is on its way to the host it is not known yet.
    assert stored == (8 if store.apart else 4 if divisible_tokens else 0)
    assert count_found(store, [*tokens, 9]) == (4 if divisible_tokens else 0)
    assert store.bytes_used == (4 * TOKEN_BYTES if divisible_tokens else 0)


@EITHER_WAY
def test_texts_beyond_the_original_context_are_neither_stored_nor_found(divisible_tokens: int) -> None:
    store = PrefixStore(10_000, divisible_tokens=divisible_tokens, block=4, longest=9, offload=_places[0])
    tokens = list(range(12))
    # Of a row that keeps 9 tokens the text has 10.
    assert store.store(tokens[:10], parts_of(tokens[:9]), 9) == 0
    assert store.store(tokens[:9], parts_of(tokens[:8]), 8) == 8
    assert store.find(tokens[:10]) is None
    assert count_found(store, tokens[:9]) == 8


def test_what_was_found_lives_on_when_it_is_evicted() -> None:
    store, tokens = store_of(), list(range(4))
    keep(store, tokens)
    prefix = store.find([*tokens, 9])
    assert store.limit(0)
    assert prefix is not None
    assert same(prefix[1], parts_of(tokens))


BLOCK = 2
# Few tokens, so that prefixes are often alike; -1 and -2 have one hash.
TOKENS = st.lists(st.sampled_from([-1, -2, 3]), min_size=1, max_size=9)


class AnyOrder(RuleBasedStateMachine):
    """The store against a plain list of prefixes, the least recently used first."""

    @initialize(divisible_tokens=st.sampled_from([NEVER, 4, 5, ALWAYS]), room=st.integers(0, 12))
    def begin(self, divisible_tokens: int, room: int) -> None:
        self.divisible_tokens = divisible_tokens
        # As long as a row can be cut; if it never can, that has another reason.
        self.ring = divisible_tokens or 3
        self.room = room * TOKEN_BYTES
        self.host = None if _places[0] is None else late_offload(0)
        self.store = PrefixStore(self.room, divisible_tokens=divisible_tokens, block=BLOCK, offload=self.host)
        self.known: list[tuple[int, ...]] = []
        self.holds: dict[str, list[tuple[int, ...]]] = {}

    def is_snapshot(self, prefix: tuple[int, ...]) -> bool:
        return len(prefix) > self.divisible_tokens

    def is_block(self, prefix: tuple[int, ...]) -> bool:
        return not self.is_snapshot(prefix) and len(prefix) % BLOCK == 0

    def ends(self, tokens: Sequence[int], whole: bool) -> list[int]:
        """Where the runs of these tokens end."""
        if self.is_snapshot(tuple(tokens)):
            return [len(tokens)]
        blocks = [*range(BLOCK, len(tokens) + 1, BLOCK)]
        return [*blocks, len(tokens)] if whole and len(tokens) not in blocks else blocks

    def path(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """What of these is known: the longest snapshot, or blocks one after the other, then the longest tail."""
        beginnings = [tuple(tokens[:end]) for end in range(1, len(tokens))]
        snapshots = [prefix for prefix in beginnings if self.is_snapshot(prefix) and prefix in self.known]
        if snapshots:
            return snapshots[-1:]
        blocks = list(takewhile(self.known.__contains__, filter(self.is_block, beginnings)))
        start = len(blocks) * BLOCK
        tails = [prefix for prefix in beginnings[start : start + BLOCK - 1] if prefix in self.known]
        return [*blocks, *tails[-1:]]

    def size(self, prefix: tuple[int, ...]) -> int:
        if self.is_snapshot(prefix):
            return sum(part.numel() * part.element_size() for part in ringed_parts_of(prefix, self.ring))
        return (len(prefix) % BLOCK or BLOCK) * TOKEN_BYTES

    @property
    def bytes(self) -> int:
        return sum(map(self.size, self.known))

    def is_followed(self, prefix: tuple[int, ...]) -> bool:
        """Whether another run needs this one to be found."""
        others = (q for q in self.known if q != prefix and not self.is_snapshot(q))
        return self.is_block(prefix) and any(q[: len(prefix)] == prefix for q in others)

    def evict(self, most: int, kept: Sequence[tuple[int, ...]] = ()) -> bool:
        stay = {*kept, *(prefix for path in self.holds.values() for prefix in path)}
        while self.bytes > most:
            leaves = [prefix for prefix in self.known if prefix not in stay and not self.is_followed(prefix)]
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
        stored = self.store.store([*tokens, 0], ringed_parts_of(tokens, self.ring), len(tokens), whole=whole)
        assert stored == (len(path[-1]) if path else 0)

    @rule(tokens=TOKENS)
    def look(self, tokens: list[int]) -> None:
        path = self.path(tokens)
        self.touch(path)
        prefix = self.store.find(tokens)
        assert (prefix is None) == (not path)
        if prefix is not None:
            assert prefix[0] == len(path[-1])
            assert same(prefix[1], ringed_parts_of(path[-1], self.ring))

    @rule(name=st.sampled_from("ab"), tokens=TOKENS)
    def hold(self, name: str, tokens: list[int]) -> None:
        self.holds.pop(name, None)
        self.evict(self.room)
        self.holds[name] = self.path(tokens)
        assert self.store.hold(name, tokens) == (len(self.holds[name][-1]) if self.holds[name] else 0)

    @rule(name=st.sampled_from("ab"))
    def release(self, name: str) -> None:
        self.holds.pop(name, None)
        self.evict(self.room)
        self.store.release(name)

    @rule(room=st.integers(0, 12))
    def limit(self, room: int) -> None:
        self.room = room * TOKEN_BYTES
        assert self.store.limit(self.room) == self.evict(self.room)

    @invariant()
    def bytes_are_those_of_what_is_known(self) -> None:
        entries = self.store._tree._entries.values()
        held = sum(part.numel() * part.element_size() for entry in entries for part in entry.parts or ())
        if self.host is not None:
            held = self.host.host.used_bytes
        assert self.store.bytes_used == held == self.bytes
        assert len(self.store._tree._entries) == len(self.known)
        kept = {prefix for path in self.holds.values() for prefix in path}
        assert self.store.bytes_held == sum(map(self.size, kept))
        tails = sum(not self.is_block(prefix) for prefix in self.known)
        assert sum(count for lengths in self.store._tree._tails.values() for count in lengths.values()) == tails


def test_in_any_order_it_is_as_a_plain_list_would_be() -> None:
    run_state_machine_as_test(AnyOrder, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("divisible_tokens", [ALWAYS, 0], ids=["blocks", "snapshots"])
def test_what_one_space_stores_no_other_finds(divisible_tokens: int) -> None:
    store, tokens = store_of(divisible_tokens=divisible_tokens), list(range(8))
    row = ([*tokens, 0], parts_of(tokens), len(tokens))
    assert store.store(*row, "a", whole=True) == 8
    assert [store.find([*tokens, 9], space) is not None for space in ("a", "b", "")] == [True, False, False]
    assert [store.hold(space, [*tokens, 9], space) for space in ("a", "b", "")] == [8, 0, 0]
    assert store.store(*row, "b", whole=True) == 8
    assert store.find([*tokens, 9], "b") is not None
    size = sum(part.nbytes for part in parts_of(tokens))
    assert store.bytes_used == 2 * size, "nothing is shared, not even in memory"
    for space in ("a", "b", ""):
        store.release(space)
    store.limit(size)
    assert [store.find([*tokens, 9], space) is not None for space in ("a", "b")] == [False, True]
    store.limit(0)
    assert not store._tree._entries and not store._tree._tails, "a space that has nothing leaves nothing"
