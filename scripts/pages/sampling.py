"""The table of fields in docs/sampling.md."""

from __future__ import annotations

import re
from pathlib import Path

from baton.core.limits import Limits, flag_of
from baton.core.sampling import MOST, SAMPLING_FIELDS, SamplingField

PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"
PLACE = re.compile(r"(<!-- fields: begin -->\n).*(<!-- fields: end -->)", re.DOTALL)


def text(page: str) -> str:
    lines = ["| field | default | values | |", "| --- | --- | --- | --- |"]
    for known in SAMPLING_FIELDS:
        lines.append(f"| `{known.name}` | {_default(known)} | {_values(known)} | {known.about.rstrip('.')} |")
    return PLACE.sub(lambda match: match[1] + "\n".join(lines) + "\n" + match[2], page)


def _default(known: SamplingField) -> str:
    if known.default in (None, 0, ()) and not isinstance(known.default, bool):
        return known.unset or ("0" if known.default == 0 else "none")
    return str(known.default) if isinstance(known.default, bool) else f"{known.default:g}"


def _values(known: SamplingField) -> str:
    if known.low is None:
        return ""
    low, high = known.bounds(Limits())
    least = f"above {low:g}" if known.above else _number(low)
    bounds = f"{least} or more" if high == MOST else f"{least} to {_number(high)}"
    return f"{bounds} (`{flag_of(known.limit)}`)" if known.limit else bounds


def _number(value: float) -> str:
    return {-(2**63): "-2^63", 2**63 - 1: "2^63 - 1"}.get(int(value), f"{value:g}")
