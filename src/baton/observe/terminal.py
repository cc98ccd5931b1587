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
    """What /live/data has told so far."""

    last: dict[str, Any] = field(default_factory=dict)
    stays: dict[tuple[str, float, str], dict[str, Any]] = field(default_factory=dict)
    buckets: _Buckets = field(default_factory=list)

    @property
    def serial(self) -> int:
        return int(self.last.get("serial", 0))

    @property
    def time(self) -> float:
        return float(self.buckets[-1]["at"]) if self.buckets else 0.0

    def take(self, found: dict[str, Any]) -> bool:
        """Keeps an answer; false where it is another server's, so that all has to be asked for again."""
        if self.last and found["run"] != self.last["run"]:
            self.last, self.stays, self.buckets = {}, {}, []
            return False
        self.last = found
        for row in found["stays"]:
            stay = dict(zip(found["stay_fields"], row, strict=True))
            self.stays[stay["kind"], stay["began"], stay["query"]] = stay
        columns = found["buckets"]
        new = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        while new and self.buckets and self.buckets[-1]["at"] >= new[0]["at"]:
            self.buckets.pop()
        gone = found["now"] - found["window_seconds"]
        self.buckets = [bucket for bucket in (*self.buckets, *new) if bucket["at"] >= gone]
        self.stays = {key: stay for key, stay in self.stays.items() if stay["ended"] is None or stay["ended"] >= gone}
        return True


def screen(seen: Seen, width: int, height: int, trouble: str = "") -> Text:
    """All of it in so many columns and lines."""
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
    """What a server says, without what a terminal would take as a command."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def _wrapped(lines: Sequence[Text], width: int) -> int:
    """Lines more that these take, where they are too long for one."""
    return sum(max(0, -(-line.cell_len // width) - 1) for line in lines)


def _title(seen: Seen, width: int) -> Text:
    about = ""
    if seen.last:
        about = f"  {plain(seen.last['model'])}  policy {plain(seen.last['settings'].get('policy', '?'))}"
    title = Text.assemble(("baton top", "bold"), (about, "dim"))
    title.truncate(width, overflow="ellipsis")
    return title


def _figures(last: dict[str, Any]) -> list[Text]:
    found, engine, process = last["figures"], last["engine"], last["process"]
    first, gap = found["first_token"], found["inter_token"]
    used = engine["kv_bytes_used"] / (engine["kv_bytes_budget"] or 1)
    speed = {
        "tokens/s": f"{found['tokens_per_second']:,.0f}",
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
        "idle": f"{found['idle_ratio']:.1%}",
        "CPU": f"{process['cpu_cores']:.1f}/{process['cores']}",
    }
    return [_facts(speed), _facts(state)]


def _facts(facts: Mapping[str, str]) -> Text:
    return Text("   ").join(Text.assemble((f"{name.strip()} ", "dim"), (told, "bold")) for name, told in facts.items())


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1000 * value:.1f} ms" if value < 0.0995 else f"{value:.2f} s"


def _rectangle(seen: Seen, columns: int, room: int) -> list[Text]:
    """A line for the prompts that are computed beside the batch and one for each row, as many as there is room for."""
    to = float(seen.last["now"])
    step = SECONDS / columns
    times = [to - SECONDS + step * (column + 0.5) for column in range(columns)]
    rows = max(int(seen.last["max_rows"]), *(1 + s["lane"] for s in seen.stays.values() if s["kind"] == "run"), 1)
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
    return [stay for stay in seen.stays.values() if (stay["kind"], stay["lane"]) == (kind, lane)]


def _row(name: str, stays: list[dict[str, Any]], times: Sequence[float], free: Sequence[int], step: float) -> Text:
    """`free`: what is drawn where no query is: 0 nothing, 1 an empty row, 2 a row that is computed for no one."""
    line = Text.assemble((f"{name:>{_MARGIN - 2}}  ", "dim"))
    for time, kind in zip(times, free, strict=True):
        low, high = time - step / 2, time + step / 2
        here = [stay for stay in stays if stay["began"] < high and (stay["ended"] is None or stay["ended"] > low)]
        if not here:
            line.append(" ·░"[kind], style="dim")
            continue
        stay = max(here, key=lambda stay: min(high, stay["ended"] or high) - max(low, stay["began"]))
        left_early = stay["ended"] is not None and stay["ended"] <= high and stay["how"] in ("ready", "waiting")
        if left_early and stay["kind"] == "run":
            line.append("◂", style="bold red")
            continue
        sign = "▐" if stay["began"] > low else "▓" if stay["filled"] and stay["filled"] > time else "█"
        line.append(sign, style=f"color({_TONES[_number(stay['query']) * 5 % len(_TONES)]})")
    return line


def _number(query: str) -> int:
    found = re.search(r"(\d{1,9})$", query)
    return int(found[1]) if found else sum(map(ord, query))


def _at(buckets: _Buckets, time: float) -> dict[str, Any] | None:
    """The last bucket that began by then, which says how it was from then on."""
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
