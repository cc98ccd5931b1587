"""Trace files: the engine's events as JSON lines, from which every figure can be made again.

The first line says what was running: baton's version, the model, its settings. Then comes one event a line, its kind
under `event`. The last line of a trace that was closed says how many events were dropped.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.core.clock import monotonic
from baton.core.errors import SettingError
from baton.core.events import Event, IterationDone, QueryEnded, QueryMoved, QueryRejected, Slots, Usage
from baton.core.files import named, open_to_write
from baton.core.query import State
from baton.core.settings import Facts, Settings
from baton.observe.background import BackgroundSink

FORMAT = 1

_KINDS: dict[str, type[Any]] = {
    "query_moved": QueryMoved,
    "query_ended": QueryEnded,
    "query_rejected": QueryRejected,
    "iteration_done": IterationDone,
}
# A trace is shown to others, so it leaves out whose query it was and how it was asked.
_UNWRITTEN = ("params", "origin")
# Traces of the release before have these names.
_OLD_FIELDS = {"pool_bytes_used": "swap_bytes_used"}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def about_engine(name: str, settings: Settings, facts: Facts) -> dict[str, Any]:
    """Returns what a trace's first line says of an engine."""
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    shown = {**dataclasses.asdict(settings), "device": facts.device, "dtype": facts.dtype, "cores": facts.cores}
    version = importlib.metadata.version("baton-llm")
    return {"baton": version, "model": name, "began": began, "clock": monotonic(), "settings": shown}


class TraceFile:
    """A sink that writes a trace. Raises SettingError if the file cannot be made, and `begin` if it cannot be written.

    If the disk is full later, the rest is dropped and counted, and the engine goes on.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._file = open_to_write("--trace", path, param="trace")
        self._background = BackgroundSink(lambda events: self.write(events), "trace")

    def begin(self, about: Mapping[str, Any]) -> None:
        """Writes the first line; must be called before the first event."""
        with named("--trace", self._path, param="trace"):
            self._file.write(json.dumps({"baton_trace": FORMAT, **about}) + "\n")
            self._file.flush()

    def __call__(self, event: Event) -> None:
        self._background(event)

    @property
    def dropped(self) -> int:
        return self._background.dropped

    def close(self) -> None:
        """May be called twice."""
        if self._file.closed:
            return
        self._background.close()
        try:
            self._file.write(json.dumps({"dropped": self.dropped}) + "\n")
            self._file.close()
        except OSError:
            pass  # the log says so already

    def write(self, events: Sequence[Event]) -> None:
        self._file.write("".join(line_of(event) for event in events))
        self._file.flush()


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace that was read. `dropped`: None if it was not closed."""

    about: Mapping[str, Any]
    events: Sequence[Event]
    dropped: int | None = None


def line_of(event: Event) -> str:
    names = [field.name for field in dataclasses.fields(event) if field.name not in _UNWRITTEN]
    fields = {name: getattr(event, name) for name in names}
    for name in ("slots", "usage"):
        if name in fields:
            fields[name] = dataclasses.asdict(fields[name])
    return json.dumps({"event": _NAMES[type(event)], **fields}, separators=(",", ":")) + "\n"


def read_trace(path: str | Path) -> Trace:
    """Reads a trace. Raises SettingError if it is not one. A last line that was cut off is left out."""
    with named("", path, param="trace"):
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    read = list(_parsed(lines, path))
    if not read or "baton_trace" not in read[0]:
        raise SettingError(f"{path} is no trace of baton", param="trace")
    if read[0]["baton_trace"] != FORMAT:
        message = f"{path}: format {read[0]['baton_trace']}, this baton reads {FORMAT}"
        raise SettingError(message, param="trace")
    events = [event_of(entry) for entry in read[1:] if "event" in entry]
    dropped = next((entry["dropped"] for entry in read[1:] if "event" not in entry), None)
    return Trace(read[0], events, dropped)


def event_of(entry: Mapping[str, Any]) -> Event:
    """The event of one line."""
    fields = {_OLD_FIELDS.get(name, name): value for name, value in entry.items() if name != "event"}
    kind = _KINDS[entry["event"]]
    if kind is QueryMoved:
        fields["was"] = None if fields["was"] is None else State(fields["was"])
        fields["now"] = State(fields["now"])
    elif kind is QueryEnded:
        fields |= {
            "outcome": State(fields["outcome"]),
            "usage": Usage(**fields["usage"]),
            "inter_token_seconds": tuple(fields["inter_token_seconds"]),
        }
    elif kind is IterationDone:
        fields |= {
            "slots": Slots(**fields["slots"]),
            "inserted": tuple(fields["inserted"]),
            "detached": tuple(fields["detached"]),
        }
    return kind(**fields)  # type: ignore[no-any-return]


def _parsed(lines: Sequence[str], path: str | Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) - 1:
                return  # its last line was being written
            raise SettingError(f"{path}, line {number + 1}: no JSON", param="trace") from None
        if not isinstance(entry, dict):
            raise SettingError(f"{path}, line {number + 1}: no object", param="trace")
        yield entry
