"""An engine on the toy model, turned by hand: its queries, and its events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.core.events import Event, IterationDone, QueryEnded
from baton.core.query import Query
from baton.engine.engine import Engine
from baton.policy.port import Plan, View
from random_batch import RandomBatch, query_of
from toy import prompt_of


@dataclass
class Scripted:
    """A policy that returns these plans one after the other, then does nothing."""

    plans: list[Plan]
    views: list[View] = field(default_factory=list)

    def plan(self, view: View) -> Plan:
        self.views.append(view)
        return self.plans.pop(0) if self.plans else Plan()


def asked(name: str, prompt_tokens: int = 4, limit: int = 6, **params: Any) -> Query:
    return query_of(name, prompt_of(prompt_tokens, seed=sum(name.encode())), limit, **params)


def done(told: Sequence[Event]) -> list[IterationDone]:
    return [event for event in told if isinstance(event, IterationDone)]


def ended(told: Sequence[Event]) -> dict[str, QueryEnded]:
    return {event.query_id: event for event in told if isinstance(event, QueryEnded)}


def accept(batch: RandomBatch, *queries: Query) -> None:
    for query in queries:
        batch.engine.accept(query, batch.hear)


def turn(batch: RandomBatch) -> None:
    batch.engine.iterate()
    batch.engine.flush()


def is_idle(engine: Engine) -> bool:
    lives = engine.lifecycle
    return (
        not engine.busy
        and engine.kv_bytes_used == 0
        and not engine.batch.lens
        and not engine.prefiller.lens
        and not len(engine.queries.pool)
        and engine.swap_bytes_used == 0
        and lives.submitted == sum(lives.ended.values())
    )


@dataclass
class Faults:
    """Makes forwards fail as `fails` says, by their number, rows and tokens."""

    fails: Callable[[int, int, int], Exception | None]
    number: int = 0

    def before(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def tried(rectangle: Any, spans: Any, tokens: Any) -> Any:
            self.number += 1
            trouble = self.fails(self.number, len(spans), len(tokens))
            if trouble is not None:
                raise trouble
            return run(rectangle, spans, tokens)

        return tried


def faulty(batch: RandomBatch, fails: Callable[[int, int, int], Exception | None]) -> Faults:
    forward, faults = batch.engine.batch._rows.feeder.forward, Faults(fails)  # type: ignore[attr-defined]
    for name in ("decode", "fill", "padded"):
        setattr(forward, name, faults.before(getattr(forward, name)))
    return faults
