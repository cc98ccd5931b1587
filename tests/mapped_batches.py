"""Batches on memory that is mapped as rows grow, for a process of their own: what touches any other memory ends it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from baton.core.footprint import Footprint
from baton.core.query import Query
from baton.cuda.decode_steps import Slot, Steps
from baton.cuda.mapped_rectangle import MappedRectangle
from baton.policy.baton import Baton
from baton.policy.table import POLICIES
from baton.testing.host_driver import HostDriver
from families import model_of
from random_batch import CONTEXT, RandomBatch, Shaken, alone, as_on_a_gpu, late_offload, random_batch, some_queries

AHEAD = ("llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe")
# How much memory there is: as much as one of the longest queries takes, so that rows live on the pages of others; and
# fewer pages than the budget promises, so that forwards run out of memory.
LITTLE, SHORT = "little", "short"


@dataclass(frozen=True, slots=True)
class Kind:
    """`interleaved`: layers together, else each buffer by itself. `prefixes`: what was computed of a text is kept.

    `all_of_it`: prompts beside steps, attended in one call, and copies that are late, as on a GPU.
    """

    policy: str
    memory: str
    interleaved: bool = True
    prefixes: bool = False
    all_of_it: bool = False


KINDS = (
    Kind("baton", LITTLE),
    Kind("baton", SHORT),
    Kind("orca", SHORT, prefixes=True),
    Kind("run_to_completion", LITTLE, interleaved=False),
    Kind("baton", LITTLE, prefixes=True, all_of_it=True),
    Kind("priority", SHORT, prefixes=True, all_of_it=True),
)
OF_ALL = ("llama", "gemma3")
"""Families of which there are batches of all kinds; of others every other one."""


class Watched(HostDriver):
    """Raises if a page is taken away while the device may have work under way."""

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

    def synchronize(self) -> None:
        self.working = False

    def unmap(self, address: int, size: int) -> None:
        assert not self.working, "a page was taken from under a step"
        self.taken += 1
        super().unmap(address, size)


def batch(family: str, kind: Kind, ahead: bool) -> str:
    """What happened to pages. Raises AssertionError if a query did not give what it gives alone."""
    queries = some_queries(10, random.Random(3))
    # Some begin as others do, and go on.
    queries[6:] = [replace(b, prompt=a.prompt + b.prompt) for a, b in zip(queries, queries[6:], strict=False)]
    expected = {query.id: alone(family, query)[0] for query in queries}
    driver, ran = run(family, kind, queries, ahead)
    assert {name: ran.tokens(name) for name in expected} == expected, f"{family}: {kind}"
    assert ran.engine.kv_bytes_used == 0
    return f"{driver.taken} taken, {driver.refused} refused"


def run(family: str, kind: Kind, queries: Sequence[Query], ahead: bool) -> tuple[Watched, RandomBatch]:
    dice = random.Random(1)
    of: dict[str, Any] = {"ahead": ahead, "native": False, "interleaved": kind.interleaved}
    footprint = footprint_of(family, **of)
    # One page of each kind is the first row's for ever.
    first = footprint.of(1) // footprint.page
    driver = Watched(footprint.of(CONTEXT) // footprint.page + 2 * first if kind.memory == SHORT else sys.maxsize)
    if kind.all_of_it:
        of |= as_on_a_gpu(dice) if ahead else {"offload": late_offload()}
    ran = random_batch(
        model_of(family),
        Shaken(POLICIES[kind.policy](), dice),
        driver=driver,
        kv_bytes=footprint.of(CONTEXT) if kind.memory == LITTLE else 2**40,
        prefix_cache=kind.prefixes,
        prefix_block=4,
        **of,
    )
    assert ran.rows is not None and ran.rows.rectangle.mapped
    watch(driver)
    ran.run(queries, dice)
    return driver, ran


@cache
def footprint_of(family: str, **of: Any) -> Footprint:
    engine = random_batch(model_of(family), Baton(), driver=HostDriver(), **of).engine
    return engine.batch.footprint  # type: ignore[attr-defined, no-any-return]


def watch(driver: Watched) -> None:
    launch = _LAUNCH

    def launching(self: Steps, slots: Sequence[Slot]) -> Any:
        launched = launch(self, slots)
        driver.working = True
        return launched

    Steps.launch = launching  # type: ignore[method-assign]


_LAUNCH = Steps.launch


def batches(families: Sequence[str]) -> Iterator[str]:
    """A line for each batch that gave what each query gives alone."""
    for family in families:
        for kind in KINDS if family in OF_ALL else KINDS[1::2]:
            yield f"{family} {kind} {batch(family, kind, family in AHEAD)}"


def batches_that_reserve_too_little(families: Sequence[str]) -> Iterator[str]:
    """The control: one token less than is written."""
    reserve = MappedRectangle.reserve
    MappedRectangle.reserve = lambda self, place, tokens: reserve(self, place, tokens - 1)  # type: ignore[method-assign]
    yield from batches(families)
