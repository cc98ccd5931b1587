"""The cost of a query that joins: a whole batch shifted, as in the paper, or one row written in place.

All layers of the shape of SmolLM2-135M, float32; rows that hold so many tokens, and a newcomer that is a token longer.

    python -m benchmarks.paper.shaping --write docs/benchmarks.md
"""

from __future__ import annotations

import statistics

import torch

from baton.core.clock import monotonic
from baton.kv.aligned import AlignedRectangle
from baton.kv.rectangle import LayerShape, Rectangle
from benchmarks.report import flags, parsed, table, tell

LAYERS, HEADS, DIM = 30, 3, 64
SHAPES = [LayerShape(HEADS, DIM, DIM)] * LAYERS


def main() -> None:
    parser = flags(__doc__, "shaping")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--turns", type=int, default=9)
    args = parsed(parser)
    rows = []
    for tokens in (100, 300, 1000):
        kinds = (AlignedRectangle, Rectangle)
        seconds: dict[type, list[float]] = {kind: [] for kind in kinds}
        for _ in range(args.turns):
            for kind in kinds:
                seconds[kind].append(1000 * joined(kind, args.rows, tokens))
        aligned, ragged = (statistics.median(seconds[kind]) for kind in kinds)
        rows.append([f"{tokens}", f"{aligned:.2f}", f"{ragged:.2f}", f"{aligned / ragged:.1f}x"])
    head = ("tokens of each row", "aligned: the batch is shifted, ms", "ragged: one row is written, ms", "")
    about = f"A newcomer joins {args.rows - 1} rows, keys and values of {LAYERS} layers; medians of {args.turns} turns."
    tell(args, [about, "", *table(head, rows)], {"rows": rows})


def joined(kind: type[Rectangle], rows: int, tokens: int) -> float:
    """Seconds until a query with one token more has its row beside others of so many."""
    body = kind(SHAPES, capacity=rows, columns=2048, dtype=torch.float32, device=torch.device("cpu"))
    parts = [torch.ones(tokens + 1, HEADS, DIM) for _ in range(2 * LAYERS)]
    for row in range(rows - 1):
        body.write(row, [part[:tokens] for part in parts], tokens)
    began = monotonic()
    body.write(rows - 1, parts, tokens + 1)
    return monotonic() - began


if __name__ == "__main__":
    main()
