"""The table of limits in docs/server.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from baton.core.limits import Limits, flag_of

PAGE = Path(__file__).parents[2] / "docs" / "server.md"
PLACE = re.compile(r"(<!-- limits: begin -->\n).*(<!-- limits: end -->)", re.DOTALL)


def text(page: str) -> str:
    lines = ["| flag | by itself | |", "| --- | --- | --- |"]
    for known in dataclasses.fields(Limits):
        value = _size(int(f"{known.default}")) if known.metadata.get("size") else f"{known.default:,g}"
        lines.append(f"| `{flag_of(known.name)}` | {value} | {known.metadata['help'].rstrip('.')} |")
    return PLACE.sub(lambda match: match[1] + "\n".join(lines) + "\n" + match[2], page)


def _size(count: int) -> str:
    return f"{count // 2**20} MiB" if count % 2**20 == 0 else f"{count // 2**10} KiB"
