"""A decode step and a fill with a model's weights in several formats, each in turn in one run.

    python -m benchmarks.cpu.quantised_step models/m135b models/qwen06b [--formats int4 int8 none]
        [--rows 1 4 8 16] [--fill 256] [--rounds 3] [--write docs/benchmarks.md]

No engine, no server: the forward alone, over rows of `--columns` tokens each with random keys and values. Medians of
the rounds' medians. MiB: of the weights that a step reads.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
import transformers
from transformers import AutoModelForCausalLM

from baton.loader.choose import choose
from baton.loader.formats import FORMATS
from baton.model.visibility import Span
from baton.native.forward import NativeForward
from benchmarks.cpu.native_step import rectangle_of, timed
from benchmarks.report import flags, parsed, processor, table, tell


def forwards(model: str, formats: list[str], dtype: torch.dtype) -> Iterator[tuple[str, NativeForward]]:
    for name in formats:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        forward = choose(loaded, format=FORMATS[name], release=True).forward
        assert isinstance(forward, NativeForward)
        yield name, forward


def main() -> None:
    parser = flags(__doc__, "quantised_step")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--formats", nargs="+", default=["int4", "int8", "none"], choices=list(FORMATS))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--fill", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parsed(parser)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype, lines, figures = getattr(torch, args.dtype), [], {}
    for model in args.models:
        ready = dict(forwards(model, args.formats, dtype))
        took: dict[tuple[str, int], list[float]] = {}
        for _ in range(args.rounds):
            for name, forward in ready.items():
                for count in args.rows:
                    rectangle = rectangle_of(forward, count, args.columns + 1, dtype)
                    spans = [Span(row, args.columns, 1) for row in range(count)]
                    took.setdefault((name, count), []).append(timed(forward, rectangle, spans)[0])
                rectangle = rectangle_of(forward, 1, args.fill, dtype)
                took.setdefault((name, 0), []).append(timed(forward, rectangle, [Span(0, 0, args.fill)])[0])
        for name, forward in ready.items():
            label = name if name != "none" else args.dtype
            rates = [count / statistics.median(took[name, count]) for count in args.rows]
            rates.append(args.fill / statistics.median(took[name, 0]))
            size = forward.program.weight_bytes / 2**20
            lines.append([model, label, f"{size:,.0f}", *(f"{rate:,.0f}" for rate in rates)])
            figures[f"{model} {label}"] = rates
    head = ("model", "weights", "MiB", *(f"{count} rows" for count in args.rows), f"prompt of {args.fill}")
    about = f"Tokens a second, {args.dtype} model; {torch.get_num_threads()} threads; {processor()}."
    tell(args, [about, "", *table(head, lines)], figures)


if __name__ == "__main__":
    main()
