"""As much of the memory as there is, and more work than fits: allocated at once, and mapped as rows grow."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from baton.cuda.virtual_memory import CudaDriver, Driver
from baton.kv.rectangle import footprint
from baton.loader.loaded import Loaded
from baton.loader.mapping import check
from baton.testing.host_driver import HostDriver

from .asks import Ask, prompt_of
from .engine import engine_run
from .models import collect

_PAGES = 64


def memory(loaded: Loaded, columns: int, cap: float) -> list[dict[str, Any]]:
    """A budget of all memory that is free, and three times as much work at once: nothing may overflow."""
    cuda = loaded.device.type == "cuda"
    per_row = footprint(loaded.geometry.shapes, columns, loaded.dtype, loaded.device).of(columns)
    free_bytes = torch.cuda.mem_get_info()[0] if cuda else 9 * per_row
    fitting = free_bytes // per_row
    answer = max(8, columns // 32)
    work = [Ask(prompt_of(columns - answer, at), answer) for at in range(3 * fitting)]
    # As `resolve` would choose: a rectangle of 80 % of it, with as many rows beside the batch as in it.
    rows = max(1, min(384, (int(fitting * 0.8) - 1) // 2))
    of: dict[str, Any] = {"columns": columns, "cap": cap}
    measurements = [_counted(lambda: engine_run(loaded, work, rows=rows, kv_bytes=rows * per_row, **of), "at once")]
    driver: Driver = CudaDriver(loaded.device) if cuda else HostDriver()
    check(loaded.model, loaded.forward, driver)
    mapped = dataclasses.replace(loaded, driver=driver)
    # All that fit may run at once, and each of them could be as long as its whole context.
    of["columns"] = min(loaded.context_tokens, 4 * columns)
    rows = max(1, min(384, fitting))
    measurements.append(
        _counted(lambda: engine_run(mapped, work, rows=rows, kv_bytes=free_bytes, mapped=True, **of), "mapped")
    )
    collect(loaded.device)
    costs = [page_costs(driver, size * driver.granularity) for size in (1, 4)]
    return [{"free GB": free_bytes / 1e9, "work": len(work), **one} for one in measurements] + costs


def page_costs(driver: Driver, size: int) -> dict[str, Any]:
    """Microseconds of the driver's calls for a page of so many bytes: one by one, and as many in one call."""
    reserved = driver.reserve(_PAGES * size)
    pages: list[Any] = []
    half, costs = _PAGES // 2, {"page MiB": size / 2**20}
    singles: list[Any] = [
        lambda at=at: driver.map(reserved.address + at * size, size, [pages[at]]) for at in range(half)
    ]
    costs["create us"] = _each([lambda: pages.append(driver.create(size))] * _PAGES)
    costs["map us"] = _each(singles)
    costs["map several us"] = _each([lambda: driver.map(reserved.address + half * size, size, pages[half:])]) / half
    driver.synchronize()
    costs["unmap us"] = _each([lambda: driver.unmap(reserved.address, _PAGES * size)]) / _PAGES
    costs["release us"] = _each([lambda page=page: driver.release(page) for page in pages])
    driver.free(reserved.address, _PAGES * size)
    return costs


def _each(calls: list[Callable[[], Any]]) -> float:
    began = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - began) / len(calls) * 1e6


def _counted(run: Callable[[], dict[str, Any]], how: str) -> dict[str, Any]:
    """With how often a forward ran out of memory and was tried again with less."""
    short = _Short()
    log = logging.getLogger("baton.engine")
    log.addHandler(short)
    try:
        return {"memory": how, **run(), "out of memory": short.count}
    finally:
        log.removeHandler(short)


class _Short(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "out of memory" in record.getMessage()
