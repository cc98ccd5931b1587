"""What `baton top` shows: the running batch as a rectangle of characters, and its figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

SECONDS = 60.0
_MARGIN = 9
_TONES = (173, 179, 143, 108, 73, 67, 110, 146, 139, 174, 180, 114)
_BARS = " ▁▂▃▄▅▆▇█"
_KINDS = ("empty_row", "finished_row", "padding", "recomputed")
_Buckets = list[dict[str, Any]]


@dataclass(slots=True)
class Seen:
    """All that /live/data has sent so far. `replica`: the engine that was asked for; "" for the only or first one."""

    replica: str = ""
    last: dict[str, Any] = field(default_factory=dict)
    intervals: dict[tuple[str, float, str], dict[str, Any]] = field(default_factory=dict)
    buckets: _Buckets = field(default_factory=list)

    @property
    def serial(self) -> int:
        return int(self.last.get("serial", 0))

    @property
    def time(self) -> float:
        return float(self.buckets[-1]["at"]) if self.buckets else 0.0

    def take(self, news: dict[str, Any]) -> bool:
        """Keeps one response. Returns False if it is another server's; then everything must be asked for again."""
        if self.last and news["run"] != self.last["run"]:
            self.last, self.intervals, self.buckets = {}, {}, []
            return False
        self.last = news
        self.replica = news.get("replica", "")
        for row in news["stays"]:
            interval = dict(zip(news["stay_fields"], row, strict=True))
            self.intervals[interval["kind"], interval["began"], interval["query"]] = interval
        columns = news["buckets"]
        new = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        while new and self.buckets and self.buckets[-1]["at"] >= new[0]["at"]:
            self.buckets.pop()
        gone = news["now"] - news["window_seconds"]
        self.buckets = [bucket for bucket in (*self.buckets, *new) if bucket["at"] >= gone]
        self.intervals = {
            key: interval
            for key, interval in self.intervals.items()
            if interval["ended"] is None or interval["ended"] >= gone
        }
        return True


def screen(seen: Seen, width: int, height: int, trouble: str = "") -> Text:
    """The whole screen, in so many columns and lines."""
    last, lines = seen.last, [_title(seen, width)]
    if trouble:
        lines.append(Text(plain(trouble), style="bold red"))
    if last:
        diagnosis = last["diagnosis"]
        lines.append(Text(plain(diagnosis["sentence"]), style="bold"))
        change = plain(diagnosis["change"])
        lines.append(Text(f"What would help: {change}" if change else "", style="dim"))
        lines += [*_figures(last), Text()]
        room = height - len(lines) - 5 - _wrapped(lines, width)
        lines += _rectangle(seen, width - _MARGIN, max(1, room))
        lines += _lines_of_time(seen, width - _MARGIN)
    return Text("\n").join(lines)


def plain(text: object) -> str:
    """A server's text without characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def _wrapped(lines: Sequence[Text], width: int) -> int:
    """How many extra lines these take because they are too long for one."""
    return sum(max(0, -(-line.cell_len // width) - 1) for line in lines)


def _title(seen: Seen, width: int) -> Text:
    about = ""
    if seen.last:
        about = f"  {plain(seen.last['model'])}  policy {plain(seen.last['settings'].get('policy', '?'))}"
        if names := seen.last.get("replicas"):
            others = [plain(name) for name in names if name != seen.last["replica"]]
            prompts = ", for prompts" if seen.last["replica"] in seen.last.get("prefill", ()) else ""
            about += f"  engine {plain(seen.last['replica'])}{prompts}" + (
                f"; --replica {', '.join(others)}" if others else ""
            )
    title = Text.assemble(("baton top", "bold"), (about, "dim"))
    title.truncate(width, overflow="ellipsis")
    return title


def _figures(last: dict[str, Any]) -> list[Text]:
    totals, engine, process = last["figures"], last["engine"], last["process"]
    first, gap = totals["first_token"], totals["inter_token"]
    used = engine["kv_bytes_used"] / (engine["kv_bytes_budget"] or 1)
    speed = {
        "tokens/s": f"{totals['tokens_per_second']:,.0f}",
        "first token": _seconds(first["p50"]),
        "p95": _seconds(first["p95"]),
        "between": _seconds(gap["p50"]),
        "p95 ": _seconds(gap["p95"]),
    }
    state = {
        "rows": f"{engine['running']}/{engine['rows']}",
        "wait": f"{engine['waiting']}",
        "swapped": f"{engine['preempted']}",
        "KV": f"{used:.0%}",
        "idle": f"{totals['idle_ratio']:.1%}",
        "CPU": f"{process['cpu_cores']:.1f}/{process['cores']}",
    }
    return [_facts(speed), _facts(state)]


def _facts(facts: Mapping[str, str]) -> Text:
    return Text("   ").join(
        Text.assemble((f"{name.strip()} ", "dim"), (value, "bold")) for name, value in facts.items()
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1000 * value:.1f} ms" if value < 0.0995 else f"{value:.2f} s"


def _rectangle(seen: Seen, columns: int, room: int) -> list[Text]:
    """A line for prompts that are computed beside the batch, and one for each row, as many as fit."""
    to = float(seen.last["now"])
    step = SECONDS / columns
    times = [to - SECONDS + step * (column + 0.5) for column in range(columns)]
    rows = max(int(seen.last["max_rows"]), *(1 + s["lane"] for s in seen.intervals.values() if s["kind"] == "run"), 1)
    shown = rows if rows + 1 <= room else max(1, room - 2)
    buckets = [_at(seen.buckets, time) for time in times]
    lines = [_row("prompts", _of(seen, "prefill", 0), times, [0] * columns, step)]
    for lane in range(shown):
        exists = [0 if bucket is None else bucket["rows"] > lane for bucket in buckets]
        held = [bucket is not None and bucket["held"] > 0 for bucket in buckets]
        free = [int(there) + int(there and done) for there, done in zip(exists, held, strict=True)]
        lines.append(_row(f"row {lane + 1}", _of(seen, "run", lane), times, free, step))
    if shown < rows:
        lines.append(Text(f"{rows - shown} rows more".rjust(_MARGIN + 10), style="dim"))
    return lines


def _of(seen: Seen, kind: str, lane: int) -> list[dict[str, Any]]:
    return [interval for interval in seen.intervals.values() if (interval["kind"], interval["lane"]) == (kind, lane)]


def _row(name: str, intervals: list[dict[str, Any]], times: Sequence[float], free: Sequence[int], step: float) -> Text:
    """`free`: what is drawn without a query: 0 nothing, 1 an empty row, 2 a row that is computed for no query."""
    line = Text.assemble((f"{name:>{_MARGIN - 2}}  ", "dim"))
    for time, kind in zip(times, free, strict=True):
        low, high = time - step / 2, time + step / 2
        here = [
            interval
            for interval in intervals
            if interval["began"] < high and (interval["ended"] is None or interval["ended"] > low)
        ]
        if not here:
            line.append(" ·░"[kind], style="dim")
            continue
        interval = max(here, key=lambda interval: min(high, interval["ended"] or high) - max(low, interval["began"]))
        left_early = (
            interval["ended"] is not None and interval["ended"] <= high and interval["how"] in ("ready", "waiting")
        )
        if left_early and interval["kind"] == "run":
            line.append("◂", style="bold red")
            continue
        sign = "▐" if interval["began"] > low else "▓" if interval["filled"] and interval["filled"] > time else "█"
        line.append(sign, style=f"color({_TONES[_number(interval['query']) * 5 % len(_TONES)]})")
    return line


def _number(query: str) -> int:
    match = re.search(r"(\d{1,9})$", query)
    return int(match[1]) if match else sum(map(ord, query))


def _at(buckets: _Buckets, time: float) -> dict[str, Any] | None:
    """Returns the last bucket that began by then; it says how things were from then on."""
    return next((bucket for bucket in reversed(buckets) if bucket["at"] <= time), None)


def _lines_of_time(seen: Seen, columns: int) -> list[Text]:
    to, step = float(seen.last["now"]), SECONDS / columns
    cells: list[_Buckets] = [[] for _ in range(columns)]
    for bucket in seen.buckets:
        column = int((bucket["at"] - (to - SECONDS)) // step)
        if 0 <= column < columns:
            cells[column].append(bucket)
    tokens = [sum(bucket["generated"] for bucket in cell) / step for cell in cells]
    waiting = [float(max((bucket["waiting"] for bucket in cell), default=0)) for cell in cells]
    axis = Text(" " * _MARGIN + f"-{SECONDS:.0f} s".ljust(columns - 3) + "now", style="dim")
    idle = [_idle(cell) for cell in cells]
    return [axis, _spark("tok/s", tokens, 1.0), _spark("waiting", waiting, 4.0), _spark("idle", idle, 1.0)]


def _idle(cell: _Buckets) -> float:
    idle: float = sum(bucket[kind] for bucket in cell for kind in _KINDS)
    return idle / ((idle + sum(bucket["useful"] for bucket in cell)) or 1)


def _spark(name: str, values: Sequence[float], least: float) -> Text:
    high = max(least, *values)
    bars = "".join(_BARS[round(value / high * (len(_BARS) - 1))] for value in values)
    return Text.assemble((f"{name:>{_MARGIN - 2}}  ", "dim"), (bars, "color(173)"))
