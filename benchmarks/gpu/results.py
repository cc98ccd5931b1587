"""The results of all parts so far, as JSON and markdown, within a budget of seconds; of stages each in its process."""

from __future__ import annotations

import json
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import table

WHOLE = "cuda"
# Seconds between the end of a stage's own budget and its being killed.
_GRACE = 15.0


@dataclass
class Results:
    """`by_part` is written after each part, to files of this `name`. `budget`: seconds from the start on."""

    out: Path
    budget: float
    name: str = WHOLE
    by_part: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        return self.budget - (time.perf_counter() - self.began)

    def part(self, name: str, run: Callable[[], Any], *, needs: float) -> None:
        """Runs a part if so many seconds are left. A failure is recorded, and other parts go on."""
        began = time.perf_counter()
        if self.left < needs:
            self.by_part[name] = {"left out": f"{self.left:.0f} s left, {needs:.0f} wanted"}
        else:
            try:
                self.by_part[name] = run()
            except Exception:
                self.by_part[name] = {"failed": traceback.format_exc(limit=-6)}
        seconds = time.perf_counter() - began
        print(f"[{time.perf_counter() - self.began:6.1f} s] {name} ({seconds:.1f} s): {self.by_part[name]}", flush=True)
        self.write()

    def stage(self, name: str, command: Sequence[str], *, share: float = 1.0) -> None:
        """Runs the command with `--stage NAME` and this share of the remaining time, and takes over its results.

        Results that it had written count, however it ended.
        """
        if self.left < _GRACE:
            self.by_part[name] = {"left out": f"{self.left:.0f} s left"}
        else:
            budget, file = share * (self.left - _GRACE), self.out / f"{name}.json"
            file.unlink(missing_ok=True)
            try:
                code = subprocess.run([*command, "--stage", name, "--budget", f"{budget:.0f}"], timeout=budget + _GRACE)
                ended = "" if code.returncode == 0 else f"the process ended with {code.returncode}"
            except subprocess.TimeoutExpired:
                ended = "the process was still running when its time was over"
            self.by_part |= json.loads(file.read_text()) if file.exists() else {}
            if ended:
                self.by_part[f"{name}: ended"] = {"failed": ended}
        self.write()

    def known(self, part: str) -> dict[str, Any]:
        """What a stage before this one found."""
        file = self.out / f"{WHOLE}.json"
        results: dict[str, Any] = json.loads(file.read_text()).get(part, {}) if file.exists() else {}
        return results

    def write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{self.name}.json").write_text(json.dumps(self.by_part, indent=1, default=str))
        if self.name == WHOLE:
            text = "\n\n".join(_markdown(name, value) for name, value in self.by_part.items())
            (self.out / f"{WHOLE}.md").write_text(text)


def _markdown(name: str, value: Any) -> str:
    rows = value if isinstance(value, list) else [value]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_shown(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join([f"## {name}", "", *table(columns, cells)])


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", "<br>").replace("|", "\\|")
