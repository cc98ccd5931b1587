"""Faults on purpose, so that tests can see their effects. Only with `BATON_TEST_MODE=1`.

`BATON_FAULTS` is a list of faults, separated by commas or spaces. Each is `NAME@N`: it happens the Nth time that this
is done since the start, counted from 1; or `NAME@SEED:K`: at the Kth token of queries with this seed.

    iteration_fails@N       the Nth iteration raises: all live queries fail, and the engine goes on
    iteration_slow@N:S      the Nth iteration takes S seconds longer
    iteration_paced@N:S     from the Nth on, an iteration begins S seconds after the one before it, or later
    engine_dies@N           the engine's thread ends in the Nth iteration
    step_fails@N            the Nth step of the batch raises: running queries fail
    step_memory@N           the Nth step of the batch runs out of memory
    prefill_fails@N         the Nth forward of prompts alone raises
    prefill_memory@N        the Nth forward of prompts alone runs out of memory
    insert_fails@N          the Nth insertion into the batch raises; insert_memory@N: runs out of memory
    resize_fails@N          the Nth resize of the batch raises; resize_memory@N: runs out of memory
    trace_full@N            at the Nth write of the trace file the disk is full
    nan@SEED:K              the logits of the query's Kth token are not numbers
    draw_fails@SEED:K       drawing the query's Kth token raises
    text_fails@SEED:K       the query's Kth token cannot be made into text
"""

from __future__ import annotations

import errno
import logging
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from baton.core.errors import SettingError
from baton.core.text import IncrementalDecoder
from baton.engine.engine import Engine
from baton.sampling.sampler import Draw, Sampler

log = logging.getLogger("baton.faults")

FAULTS, TEST_MODE = "BATON_FAULTS", "BATON_TEST_MODE"


class InjectedFault(RuntimeError):
    """The error of a fault on purpose."""


class _Fault(NamedTuple):
    """`first` and `second`: the numbers behind the name."""

    name: str
    first: int
    second: float


def _fails(name: str) -> NoReturn:
    raise InjectedFault(name)


def _runs_out_of_memory(name: str) -> NoReturn:
    raise MemoryError(name)


def _disk_full(name: str) -> NoReturn:
    raise OSError(errno.ENOSPC, name)


def _dies(name: str) -> NoReturn:
    raise SystemExit(name)


# What is counted, and what then happens, by the fault's name.
_AT: dict[str, tuple[str, Callable[[str], None]]] = {
    f"{place}_{what}": (place, act)
    for place in ("step", "prefill", "insert", "resize")
    for what, act in (("fails", _fails), ("memory", _runs_out_of_memory))
}
_AT |= {"iteration_fails": ("iteration", _fails), "engine_dies": ("iteration", _dies)}
_AT |= {"trace_full": ("trace", _disk_full)}
_SLOW, _PACED = "iteration_slow", "iteration_paced"
_TIMED = (_SLOW, _PACED)
_OF_A_QUERY = ("nan", "draw_fails", "text_fails")
_FORM = re.compile(r"([a-z_]+)@(\d+)(?::(\d+(?:\.\d+)?))?")


def from_environment(environment: Mapping[str, str]) -> Faults | None:
    """The faults that are asked for, if any. Raises SettingError for an invalid one, and outside test mode."""
    text = environment.get(FAULTS, "")
    if not text.strip():
        return None
    if environment.get(TEST_MODE) != "1":
        raise SettingError(f"{FAULTS} is for tests: it needs {TEST_MODE}=1 beside it", param="faults")
    log.warning("faults on purpose: %s", text)
    return Faults(text)


class Faults:
    """Faults that wait for their time. Faults that are added later count from then on.

    Each happens once; `done` has their names. A fault of a query happens to each query with its seed.
    """

    def __init__(self, text: str = "") -> None:
        self.done: list[str] = []
        self._waiting: list[tuple[_Fault, int]] = []
        self._counts: Counter[str] = Counter()
        self._began = 0.0
        self._lock = threading.Lock()
        self.add(text)

    def add(self, text: str) -> None:
        """Adds faults. Raises SettingError if one is unknown or incomplete."""
        added = [_parsed(entry) for entry in re.split(r"[,\s]+", text) if entry]
        with self._lock:
            self._waiting += [(fault, self._counts[_place(fault.name)]) for fault in added]

    def at(self, place: str) -> None:
        """Counts that this is done once more; raises the faults that waited for it."""
        with self._lock:
            self._counts[place] += 1
            count = self._counts[place]
            due = [
                (fault, since)
                for fault, since in self._waiting
                if _place(fault.name) == place and fault.first == count - since and fault.name != _PACED
            ]
            paced = [
                fault.second for fault, since in self._waiting if fault.name == _PACED and fault.first <= count - since
            ]
            self._waiting = [one for one in self._waiting if one not in due]
            self.done += [fault.name for fault, _ in due]
        for fault, _ in sorted(due, key=lambda one: one[0].name != _SLOW):
            if fault.name == _SLOW:
                time.sleep(fault.second)
            else:
                _AT[fault.name][1](fault.name)
        if place == "iteration" and paced:
            time.sleep(max(0.0, self._began + max(paced) - time.monotonic()))
            self._began = time.monotonic()

    def hits(self, name: str, seed: int, token: int) -> bool:
        """Whether the query with this seed has this fault at its token of this number, from 1."""
        with self._lock:
            hit = any(fault.name == name and (fault.first, fault.second) == (seed, token) for fault, _ in self._waiting)
            self.done += [name] * hit
        return hit

    def before(self, place: str, owner: object, verb: str) -> None:
        """Makes calls of this verb of `owner` raise the faults of the place first."""
        right = getattr(owner, verb)

        def met(*args: Any, **kw: Any) -> Any:
            self.at(place)
            return right(*args, **kw)

        setattr(owner, verb, met)

    def inject(self, engine: Engine) -> None:
        """Puts the faults of iteration, prefiller and batch into this engine."""
        self.before("iteration", engine, "iterate")
        self.before("prefill", engine.prefiller, "advance")
        for verb in ("step", "insert", "resize"):
            self.before(verb, engine.batch, verb)

    def sampler(self, right: Sampler) -> Sampler:
        """The same sampler, except for queries with faulty logits or draws."""
        return _FaultySampler(right, self)

    def decoder(self, right: IncrementalDecoder, seed: int) -> IncrementalDecoder:
        """The same decoder for a query with this seed, except for tokens that fail."""
        return _FaultyDecoder(right, self, seed)


class _FaultySampler(Sampler):
    sees_logits = True

    def __init__(self, right: Sampler, faults: Faults) -> None:
        super().__init__(end_ids=())
        self._right = right
        self._faults = faults

    def __call__(self, logits: Any, draws: Sequence[Draw]) -> list[int | None]:
        hit = self._hit("nan", draws)
        if hit:
            logits = logits.clone()
            logits[hit] = math.nan
        if self._hit("draw_fails", draws):
            _fails("draw_fails")
        return self._right(logits, draws)

    def _hit(self, name: str, draws: Sequence[Draw]) -> list[int]:
        numbers = [len(draw.tokens) - draw.prompt_tokens + 1 for draw in draws]
        return [row for row, draw in enumerate(draws) if self._faults.hits(name, draw.seed, numbers[row])]


class _FaultyDecoder:
    def __init__(self, right: IncrementalDecoder, faults: Faults, seed: int) -> None:
        self._right = right
        self._faults = faults
        self._seed = seed
        self._tokens = 0

    def step(self, token_id: int) -> str:
        self._tokens += 1
        if self._faults.hits("text_fails", self._seed, self._tokens):
            _fails("text_fails")
        return self._right.step(token_id)

    def flush(self) -> str:
        return self._right.flush()


def _place(name: str) -> str:
    return "iteration" if name in _TIMED else _AT[name][0] if name in _AT else ""


def _parsed(entry: str) -> _Fault:
    match = _FORM.fullmatch(entry)
    name, first, second = match.groups() if match else ("", "", None)
    if name not in {*_AT, *_TIMED, *_OF_A_QUERY}:
        known = ", ".join(sorted({*_AT, *_TIMED, *_OF_A_QUERY}))
        raise SettingError(f"{FAULTS}: {entry!r} is no fault; there is NAME@NUMBER with {known}", param="faults")
    if (second is None) != (name in _AT):
        wanted = f"{name}@N" if name in _AT else f"{name}@N:SECONDS" if name in _TIMED else f"{name}@SEED:TOKEN"
        raise SettingError(f"{FAULTS}: {entry!r} must be {wanted}", param="faults")
    return _Fault(name, int(first), float(second or 0))
