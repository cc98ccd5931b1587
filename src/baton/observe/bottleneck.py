"""What limits the engine now, in one sentence, and what to change. It uses measurements, never guesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baton.engine.client import Costs
from baton.observe.timeline import Bucket

# A limit is named only above these shares.
_BUSY = 0.7
_IDLE_SLOTS = 0.15
_STALLED = 0.25
_MEMORY = 0.9
_RESERVED = 0.5
_FULL = 0.8
_NEAR = 0.6
_MOST_SHARE = 1.05


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured when the engine started. `read_bytes`: bytes a second that all cores read; 0 if not measured.

    `weight_bytes`: what a step reads of the model. `kv_token_bytes`: what it reads for each token of a row.
    """

    read_bytes: float
    weight_bytes: int
    kv_token_bytes: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`limit`: "nothing", "queue", "memory", "prefill", "idle", "bandwidth" or "compute". `change`: what would help."""

    limit: str
    sentence: str
    change: str = ""


def diagnose(buckets: Sequence[Bucket], costs: Costs, machine: Machine, *, max_rows: int) -> Diagnosis:
    """Returns the diagnosis of the last buckets, which are some seconds."""
    seconds = sum(bucket.busy_seconds for bucket in buckets)
    span = buckets[-1].at - buckets[0].at if len(buckets) > 1 else 0.0
    busy = seconds / span if span else 0.0
    if not seconds or busy < 0.05:
        return Diagnosis("nothing", "Nothing to do: the engine waits for queries.")
    waiting, occupied = buckets[-1].waiting, buckets[-1].occupied
    used = max((bucket.kv_bytes / bucket.kv_budget for bucket in buckets if bucket.kv_budget), default=0.0)
    if _memory_short(buckets, used, max_rows):
        sentence = f"Memory for keys and values is the limit: {percent(used)} is used"
        sentence += f", and {waiting} queries wait with {max_rows - occupied} rows free" if waiting else ""
        return Diagnosis("memory", f"{sentence}.", "raise --kv-memory, or lower --max-model-len")
    idle = _idle(buckets)
    if idle.ratio > _IDLE_SLOTS:
        sentence = f"{percent(idle.ratio)} of what is computed is of no use, most of it {idle.worst.replace('_', ' ')}"
        return Diagnosis("idle", f"{sentence}.", "--policy baton computes no rows that are empty or done")
    stalled = sum(bucket.stall_seconds for bucket in buckets) / seconds
    if stalled > _STALLED:
        sentence = f"Prompts are the limit: running rows spend {percent(stalled)} of the time waiting for them"
        return Diagnosis("prefill", f"{sentence}.", "lower --max-stall-ms for smoother answers, or add a replica")
    return _of_steps(buckets, costs, machine, busy, waiting, max_rows)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _memory_short(buckets: Sequence[Bucket], used: float, max_rows: int) -> bool:
    """Whether queries wait for memory though rows are free: it is reserved for the rest of running answers."""
    waiting = any(bucket.preempted for bucket in buckets) or buckets[-1].waiting > 0
    if used > _MEMORY:
        return waiting and buckets[-1].occupied < max_rows
    return used > _RESERVED and all(bucket.waiting for bucket in buckets) and _occupied(buckets) < _FULL * max_rows


def _occupied(buckets: Sequence[Bucket]) -> float:
    return sum(bucket.occupied for bucket in buckets) / len(buckets)


def _of_steps(
    buckets: Sequence[Bucket], costs: Costs, machine: Machine, busy: float, waiting: int, max_rows: int
) -> Diagnosis:
    # A row that became free is taken in the next iteration, so a full batch sometimes has a free row.
    rows = max(bucket.occupied for bucket in buckets)
    if busy < _BUSY:
        return Diagnosis(
            "nothing", f"The load is the limit: the engine computes {percent(busy)} of the time, and nobody waits."
        )
    share = _read_share(buckets, machine)
    more = _more_rows(costs, rows, max_rows)
    full = waiting > 0 and _occupied(buckets) >= _FULL * max_rows
    change = more if full else ""
    if share is not None and share >= _NEAR:
        sentence = f"Decode is bound by memory bandwidth, at {percent(share)} of this machine's measured limit"
        return Diagnosis("bandwidth", f"{sentence}{', and queries wait' if waiting else ''}.", change)
    if full:
        sentence = f"The batch is full: {_rows(rows)}, and {waiting} queries wait"
        return Diagnosis("queue", f"{sentence}.", more or "raise --max-batch-size, or add a replica")
    reading = "" if share is None else f", reading memory at {percent(share)} of its limit"
    return Diagnosis("compute", f"Computation is the limit: steps of {_rows(rows)} take all the time{reading}.")


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


@dataclass(frozen=True, slots=True)
class _Idle:
    ratio: float
    worst: str


def _idle(buckets: Sequence[Bucket]) -> _Idle:
    sums: dict[str, int] = {}
    for bucket in buckets:
        for kind, count in bucket.slots.items():
            sums[kind] = sums.get(kind, 0) + count
    idle = {kind: count for kind, count in sums.items() if kind != "useful"}
    total = sum(sums.values())
    return _Idle(sum(idle.values()) / total if total else 0.0, max(idle, key=lambda kind: idle[kind], default=""))


def _read_share(buckets: Sequence[Bucket], machine: Machine) -> float | None:
    """The share of the machine's memory bandwidth that steps use; None if unknown.

    It is also None for a small model, whose weights are read from the caches.
    """
    steps = sum(bucket.steps for bucket in buckets)
    seconds = sum(bucket.step_seconds for bucket in buckets)
    if not machine.read_bytes or not seconds:
        return None
    columns = sum(bucket.columns for bucket in buckets)
    share = (steps * machine.weight_bytes + columns * machine.kv_token_bytes) / seconds / machine.read_bytes
    return share if share <= _MOST_SHARE else None


def _more_rows(costs: Costs, rows: int, max_rows: int) -> str:
    """What half as many rows more would bring, on the line through the measured steps."""
    wanted = max_rows + max(1, max_rows // 2)
    now, then = costs.step_at(rows), costs.step_at(wanted)
    if len(costs.step_seconds_by_rows) < 2 or not now or not then or not rows:
        return ""
    gain, longer = wanted / rows * now / then - 1, (then - now) * 1000
    if gain < 0.05:
        return "add a replica: more rows would bring nothing"
    return f"--max-batch-size {wanted} would add about {percent(gain)} throughput and {longer:.0f} ms per token"
