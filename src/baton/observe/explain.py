"""One query's way through the engine, from a trace: what happened to it, when, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from baton.core.errors import InvalidValue
from baton.core.events import Event, IterationDone, QueryEnded, QueryMoved
from baton.core.query import State
from baton.observe.trace import Trace, read_trace

_WORDS = {
    (None, State.WAITING): "arrived",
    (None, State.READY): "resumed, with its keys and values",
    (State.WAITING, State.PREFILLING): "its prompt is begun",
    (State.PREFILLING, State.READY): "prefilled",
    (State.READY, State.RUNNING): "inserted into the batch",
    (State.RUNNING, State.READY): "swapped out, with what was computed",
    (State.RUNNING, State.WAITING): "forgotten, to be computed again",
    (State.READY, State.WAITING): "forgotten, to be computed again",
    (State.PREFILLING, State.WAITING): "forgotten, to be computed again",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the report. `seconds` since the query's arrival; `why`: the scheduler's words."""

    seconds: float
    iteration: int | None
    what: str
    why: str = ""


def queries_of(trace: Trace) -> list[str]:
    """The ids of all queries in a trace, in order of arrival."""
    return [event.query_id for event in trace.events if isinstance(event, QueryMoved) and event.was is None]


def find(trace: Trace, name: str) -> str:
    """Finds a query by its id, by the id of its answer, or by a part that only one id has. Raises InvalidValue."""
    known = queries_of(trace)
    wanted = name.removeprefix("chatcmpl-").removeprefix("cmpl-")
    if wanted in known:
        return wanted
    alike = [query_id for query_id in known if wanted in query_id]
    if len(alike) == 1:
        return alike[0]
    shown = ", ".join((alike or known)[:8]) or "none"
    message = f"{len(alike)} queries of this trace are called {name!r}: there is {shown}"
    raise InvalidValue(message, param="query")


def explain(trace: Trace, query_id: str, *, every: bool = False) -> Iterator[Step]:
    """The steps of one query. `every`: one step for each iteration; else iterations that only decode are one step."""
    mine = sorted((event for event in trace.events if _is_about(event, query_id)), key=_began)
    arrived = next(event.time for event in mine if isinstance(event, QueryMoved))
    for together, events in groupby(mine, key=lambda event: not every and _only_decodes(event, query_id)):
        some = list(events)
        if together and len(some) > 1:
            yield _decoded([event for event in some if isinstance(event, IterationDone)], arrived)
            continue
        for event in some:
            yield _step_of(event, query_id, arrived)


def _began(event: Event) -> float:
    """When an iteration began; its event has the time of its end."""
    return event.time - (event.seconds if isinstance(event, IterationDone) else 0.0)


def _is_about(event: object, query_id: str) -> bool:
    if isinstance(event, IterationDone):
        return query_id in event.fed
    return isinstance(event, (QueryMoved, QueryEnded)) and event.query_id == query_id


def _only_decodes(event: object, query_id: str) -> bool:
    return isinstance(event, IterationDone) and event.fed[query_id] == 1


def _decoded(steps: Sequence[IterationDone], arrived: float) -> Step:
    first, last = steps[0], steps[-1]
    mean = sum(step.seconds for step in steps) / len(steps)
    rows = sorted({step.occupied for step in steps})
    waited = sum(sum(step.stall_seconds.values()) for step in steps)
    stalls = f", {waited * 1000:.0f} ms of them for other queries' prompts and moves" if waited > 0.0005 else ""
    shown = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    what = f"{len(steps)} tokens, one each iteration to {last.index}: {mean * 1000:.1f} ms, {shown} rows in use{stalls}"
    return Step(first.time - first.seconds - arrived, first.index, what)


def _step_of(event: object, query_id: str, arrived: float) -> Step:
    if isinstance(event, IterationDone):
        others = len(event.fed) - 1
        tokens = event.fed[query_id]
        beside = f", {others} other{'s' if others > 1 else ''} beside it" if others else ""
        what = f"{tokens} token{'s' if tokens > 1 else ''} computed in {event.seconds * 1000:.1f} ms{beside}"
        return Step(event.time - event.seconds - arrived, event.index, what, event.why)
    if isinstance(event, QueryEnded):
        return Step(event.time - arrived, None, _summary(event))
    assert isinstance(event, QueryMoved)
    what = _WORDS.get((event.was, event.now), f"{event.was} to {event.now}")
    if not event.now.live:
        what = event.now.value
    elif event.was is None:
        what += f", {event.prompt_tokens} prompt tokens"
    return Step(event.time - arrived, None, what, "" if event.was is None or event.why == what else event.why)


def _summary(event: QueryEnded) -> str:
    usage = event.usage
    first = "" if usage.first_token_seconds is None else f"first token after {usage.first_token_seconds:.3f} s, "
    return (
        f"{usage.generated_tokens} tokens in {event.end_to_end_seconds:.3f} s: {first}"
        f"waited {usage.queue_seconds:.3f} s, prefill {usage.prefill_seconds:.3f} s, "
        f"decode {usage.decode_seconds:.3f} s, "
        f"{usage.idle_ratio:.1%} of its token slots idle, {usage.cached_tokens} prompt tokens from a stored prefix"
    )


def run_explain(path: str, name: str | None, *, every: bool, as_json: bool) -> None:
    """Prints one query's steps, or the list of queries if none is named. Raises SettingError and InvalidValue."""
    trace = read_trace(path)
    if name is None:
        ends = {event.query_id: event for event in trace.events if isinstance(event, QueryEnded)}
        for query_id in queries_of(trace):
            end = ends.get(query_id)
            facts = {"query": query_id, "outcome": end and end.outcome.value, "seconds": end and end.end_to_end_seconds}
            shown = "live" if end is None else f"{end.outcome.value} after {end.end_to_end_seconds:.3f} s"
            print(json.dumps(facts) if as_json else f"{query_id}  {shown}")
        return
    for step in explain(trace, find(trace, name), every=every):
        if as_json:
            print(json.dumps(asdict(step)))
            continue
        at = "" if step.iteration is None else f"#{step.iteration}"
        why = f"  ({step.why})" if step.why else ""
        print(f"{step.seconds:10.3f} s {at:>8}  {step.what}{why}")
