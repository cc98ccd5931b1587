"""Engines in child processes, as a front sees them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from baton.cluster.port import EngineLost, Hearing
from baton.cluster.wire import About, Message, about_of
from warm import WarmProcess


class Child:
    """A process with an engine."""

    def __init__(self, settings: Mapping[str, Any], depot: Path) -> None:
        words = ["-m", "cluster.child", json.dumps(dict(settings)), str(depot)]
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        self.process = WarmProcess(words, stdout=True, stderr=False, environment={"PYTHONPATH": paths})
        self.lock = threading.Lock()

    def introduced(self) -> About:
        assert self.process.stdout is not None
        return about_of(json.loads(self.process.stdout.readline()))

    def tell(self, verb: str, *given: Any) -> None:
        try:
            with self.lock:
                self.process.stdin.write(json.dumps([verb, *given]) + "\n")
                self.process.stdin.flush()
        except OSError:
            raise EngineLost("the process is gone") from None


class Piped:
    """The `Engines` of these child processes."""

    def __init__(self) -> None:
        self.children: dict[str, Child] = {}
        self.hearing: Hearing | None = None
        self.closed = False
        self.prefill: set[str] = set()

    def add(self, name: str, child: Child, *, prefill: bool = False) -> None:
        """The child has introduced itself, and is heard from now on."""
        if prefill:
            self.prefill.add(name)
        self.children[name] = child
        threading.Thread(target=self._hear, args=(name, child), daemon=True).start()
        if self.hearing is not None:
            self.hearing.came(name)

    def names(self) -> Sequence[str]:
        return list(self.children)

    def prefill_names(self) -> Sequence[str]:
        return sorted(self.prefill)

    def listen(self, hearing: Hearing) -> None:
        self.hearing = hearing

    def start(self, engine: str, asks: Sequence[Message]) -> None:
        self._child(engine).tell("start", list(asks))

    def cancel(self, engine: str, query_ids: Sequence[str]) -> None:
        self._child(engine).tell("cancel", list(query_ids))

    def give(self, engine: str, query_ids: Sequence[str] | None = None, without_keys: Sequence[str] = ()) -> None:
        self._child(engine).tell("give", query_ids, list(without_keys))

    def abandon(self, engine: str) -> None:
        self._child(engine).process.kill()

    def close(self) -> None:
        self.closed = True
        for child in self.children.values():
            child.process.kill()
            child.process.wait()

    def _child(self, engine: str) -> Child:
        if engine not in self.children:
            raise EngineLost(f"{engine} is gone")
        return self.children[engine]

    def _hear(self, name: str, child: Child) -> None:
        assert child.process.stdout is not None and self.hearing is not None
        for line in child.process.stdout:
            # A line that the kill cut off is no message.
            if line.endswith("\n") and not self.closed:
                message = json.loads(line)
                if "took" in message:
                    self.hearing.took(name, message["took"])
                else:
                    self.hearing.heard(name, message)
        if not self.closed:
            del self.children[name]
            self.hearing.lost(name)
