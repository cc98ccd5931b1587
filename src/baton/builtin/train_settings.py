"""The recipe's numbers, in one place; the model card repeats them."""

from __future__ import annotations

SEED = 20261121
VOCABULARY = 768
CONTEXT = 2048
HIDDEN = 256
INTERMEDIATE = 704
LAYERS = 4
HEADS = 8
KV_HEADS = 4
ROPE_BASE = 10_000.0

STEP_TOKENS = 4096  # tokens of a training step, padding included
# Columns of a step's rows: share of the steps. Most are short, because attention costs by the square. A model that saw
# long rows only at the end lost what it knew.
ROW_SHARES = {320: 0.93, 1024: 0.05, 2048: 0.02}
WARMUP_STEPS = 100
MATRIX_RATE = 0.02  # Muon, all matrices of the layers
OTHER_RATE = 0.004  # AdamW, embedding and norms
