"""Whom a front refuses: as one engine would, with room for as many as all engines together have."""

from __future__ import annotations

import pytest

from baton.cluster.admission import Admission
from baton.cluster.follow import Follow
from baton.core.errors import EngineUnhealthy, QueueFull, ShuttingDown
from baton.core.events import Event, QueryRejected
from cluster.test_far import SETTINGS, query


def follows(count: int, told: int = 0) -> list[Follow]:
    """So many queries, of which so many have tokens."""
    return [Follow(query(str(at)), lambda updates: None, tokens=[7] * (at < told)) for at in range(count)]


def test_refusals_are_told_as_an_engine_tells_them() -> None:
    """They were on no metrics page."""
    heard: list[Event] = []
    admission = Admission(SETTINGS, lambda: 5.0)
    admission.sinks.append(heard.append)
    with pytest.raises(QueueFull, match="3 queries are waiting and at most 2 may"):
        admission.check_room(follows(4, told=1), 1, 2, rejected=2)
    admission.check_room(follows(1), 0, 1, rejected=1)
    with pytest.raises(EngineUnhealthy, match="2 queries wait for one"):
        admission.check_room(follows(2), 0, 1, rejected=1)
    admission.draining = True
    with pytest.raises(ShuttingDown):
        admission.check_room([], 1, 1, rejected=1)
    reasons = ["queue_full", "queue_full", "engine_unhealthy", "shutting_down"]
    assert heard == [QueryRejected(5.0, reason) for reason in reasons]


def test_a_full_front_says_so_as_an_engine_does() -> None:
    admission = Admission(SETTINGS, lambda: 0.0)
    assert admission.not_ready(follows(5), 2) is None
    assert admission.not_ready(follows(5, told=2), 2) is None
    assert admission.not_ready(follows(6), 2) == "6 queries are waiting (--max-waiting)"
    assert admission.not_ready(follows(6, told=2), 2) == "4 queries are waiting (--max-waiting)"
