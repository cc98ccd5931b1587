"""The results of all parts so far, as JSON and markdown, within a budget of seconds."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import table


@dataclass
class Results:
    """`found` is written after each part. `budget`: seconds from the start on."""

    out: Path
    budget: float
    found: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        return self.budget - (time.perf_counter() - self.began)

    def part(self, name: str, run: Callable[[], Any], *, needs: float) -> None:
        """Runs a part where so many seconds are left; what fails says so, and the others go on."""
        began = time.perf_counter()
        if self.left < needs:
            self.found[name] = {"left out": f"{self.left:.0f} s left, {needs:.0f} wanted"}
        else:
            try:
                self.found[name] = run()
            except Exception:
                self.found[name] = {"failed": traceback.format_exc(limit=-6)}
        seconds = time.perf_counter() - began
        print(f"[{time.perf_counter() - self.began:6.1f} s] {name} ({seconds:.1f} s): {self.found[name]}", flush=True)
        self.write()

    def write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "cuda.json").write_text(json.dumps(self.found, indent=1, default=str))
        (self.out / "cuda.md").write_text("\n\n".join(_markdown(name, value) for name, value in self.found.items()))


def _markdown(name: str, value: Any) -> str:
    rows = value if isinstance(value, list) else [value]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_shown(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join([f"## {name}", "", *table(columns, cells)])


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", "<br>").replace("|", "\\|")
