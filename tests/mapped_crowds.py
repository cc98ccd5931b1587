"""Crowds on memory that is mapped as rows grow, in a process of their own: what touches any other memory ends it.

    python tests/mapped_crowds.py [--wrong] FAMILY ...

Each line of its output is a crowd that gave what each query gives alone. `--wrong`: rows are reached for one token less
than is written, to see that it is noticed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

import torch

from baton.compose import POLICIES
from baton.kv.driver import HostDriver
from baton.kv.mapped import MappedRectangle
from baton.model.steps import Slot, Steps
from baton.policy.baton import Baton
from baton.query import Query
from crowd import CONTEXT, Crowd, Shaken, alone, crowd_of, some_queries
from families import model_of

AHEAD = ("llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe")
# How much memory there is: as much as one of the longest queries takes, so that rows live on the pages of others; and
# fewer pages than the budget promises, so that forwards run out of memory.
LITTLE, SHORT = "little", "short"
CROWDS = (
    ("baton", LITTLE, True),
    ("baton", SHORT, True),
    ("orca", SHORT, True),
    # Each buffer by itself.
    ("run_to_completion", LITTLE, False),
)


class Watched(HostDriver):
    """Raises where a page is taken away while work may be under way that the device was given."""

    def __init__(self, pages: int = sys.maxsize) -> None:
        super().__init__(pages)
        self.working = False
        self.taken = self.refused = 0

    def create(self, size: int) -> int:
        try:
            return super().create(size)
        except torch.OutOfMemoryError:
            self.refused += 1
            raise

    def settle(self) -> None:
        self.working = False

    def unmap(self, address: int, size: int) -> None:
        assert not self.working, "a page was taken from under a step"
        self.taken += 1
        super().unmap(address, size)


def crowd(family: str, policy: str, memory: str, *, ahead: bool, interleaved: bool = True) -> str:
    """What happened to pages; raises AssertionError where a query did not give what it gives alone."""
    model = model_of(family)
    queries = some_queries(14, random.Random(3))
    expected = {query.id: alone(model, query)[0] for query in queries}
    driver, ran = run(family, policy, memory, queries, ahead=ahead, interleaved=interleaved)
    assert {name: ran.tokens(name) for name in expected} == expected, f"{family} {policy} {memory}"
    assert ran.engine.kv_bytes_used == 0
    return f"{driver.taken} taken, {driver.refused} refused"


def run(
    family: str, policy: str, memory: str, queries: Sequence[Query], *, ahead: bool, interleaved: bool
) -> tuple[Watched, Crowd]:
    dice = random.Random(1)
    footprint = crowd_of(
        model_of(family), Baton(), ahead=ahead, native=False, driver=HostDriver(), interleaved=interleaved
    ).engine.batch.footprint
    # One page of each kind is the first row's for ever.
    first = footprint.of(1) // footprint.page
    driver = Watched(footprint.of(CONTEXT) // footprint.page + 2 * first if memory == SHORT else sys.maxsize)
    ran = crowd_of(
        model_of(family),
        Shaken(POLICIES[policy](), dice),
        ahead=ahead,
        native=False,
        driver=driver,
        kv_bytes=footprint.of(CONTEXT) if memory == LITTLE else 2**40,
        interleaved=interleaved,
    )
    assert ran.rows is not None and ran.rows.rectangle.mapped
    watch(driver)
    ran.run(queries, dice)
    return driver, ran


def watch(driver: Watched) -> None:
    launch = _LAUNCH

    def launching(self: Steps, slots: Sequence[Slot]) -> Any:
        launched = launch(self, slots)
        driver.working = True
        return launched

    Steps.launch = launching  # type: ignore[method-assign]


_LAUNCH = Steps.launch


def reach_less() -> None:
    reach = MappedRectangle.reach
    MappedRectangle.reach = lambda self, place, tokens: reach(self, place, tokens - 1)  # type: ignore[method-assign]


def main(families: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for family in families:
        for policy, memory, interleaved in CROWDS:
            happened = crowd(family, policy, memory, ahead=family in AHEAD, interleaved=interleaved)
            print(family, policy, memory, happened, flush=True)


if __name__ == "__main__":
    if "--wrong" in sys.argv:
        reach_less()
    main([name for name in sys.argv[1:] if name != "--wrong"])
