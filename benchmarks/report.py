"""What the figures' reports share: flags, percentiles, a table, and the section of a document that a figure owns."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path


def flags(doc: str | None, section: str) -> argparse.ArgumentParser:
    """The flags that every figure of the engine has; `section` names its markers."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder; the built-in model if left out")
    parser.add_argument("--seed", type=int, default=0, help="of lengths and prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    parser.add_argument("--section", default=section, help="which markers of the file (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file with markers for the table")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags as given. A file without the section's markers is refused now, not after the run."""
    args = parser.parse_args()
    if args.write and f"<!-- {args.section}: begin -->" not in args.write.read_text():
        parser.error(f"--write {args.write}: it has no markers of section {args.section}")
    return args


def tell(args: argparse.Namespace, lines: Iterable[str], figures: Mapping[str, object]) -> None:
    """Prints the report, and writes it and its figures to the files that the flags name."""
    report = "\n".join([*lines, "", f"Again: `{command()}`"])
    print(report)
    if args.json:
        about = {"command": command(), "machine": machine(args.model), "figures": figures}
        args.json.write_text(json.dumps(about, indent=2) + "\n")
    if args.write:
        write_section(args.write, args.section, report)


def write_section(path: Path, section: str, report: str) -> None:
    """Puts the report between the section's markers. Raises ValueError if the file does not have them."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    head, rest = path.read_text().split(begin)
    path.write_text(f"{head}{begin}\n{report}\n{end}{rest.split(end)[1]}")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def machine(model: str | None) -> str:
    return (
        f"Model: {model or 'built in'}. Machine: {os.cpu_count()} cores, "
        f"{platform.processor() or platform.machine()}; {datetime.now().date()}."
    )


def processor() -> str:
    """Its name and those of its instruction sets that products use, as Linux says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    sets = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    known = [one for one in sets if one in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine())} ({', '.join(known)}), {os.cpu_count()} cores"


def command() -> str:
    return "python " + shlex.join(sys.orig_argv[1:])


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest rank: the smallest value that so many percent of all do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
