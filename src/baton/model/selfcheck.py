"""Proof at load that rows of a rectangle give what the stock model gives: refuses by name what does not."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from baton.errors import LoadError
from baton.kv.rectangle import Rectangle
from baton.model.attention import Span
from baton.model.forward import Forward
from baton.model.probe import use_attention

# A window that is longer than this is checked by its own code path on shorter prompts only, see `_prompt_tokens`.
LONGEST_PROMPT = 96
SHORTEST_PROMPT = 24
STEPS = 4
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def self_check(model: PreTrainedModel, forward: Forward, stock: str) -> float:
    """Compares a fill in two chunks and a few decode steps, beside a neighbour row, with stock attention.

    Answers the largest difference of logits relative to their largest; raises LoadError above the tolerance of the
    model's dtype. The prompt is longer than the smallest window where that is at most LONGEST_PROMPT tokens.
    """
    ours_name = model.config.get_text_config()._attn_implementation
    count = _prompt_tokens(forward) + STEPS
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (2, count), generator=torch.Generator().manual_seed(0))
    ours = _ours(forward, tokens, model)
    try:
        use_attention(model, stock)
        with torch.inference_mode():
            logits = model(input_ids=tokens.to(model.device), use_cache=False).logits.float()
    finally:
        use_attention(model, ours_name)
    theirs = logits[:, -STEPS - 1 :].transpose(0, 1)
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    if not error <= TOLERANCE.get(model.dtype, 1e-1):
        raise LoadError(f"its logits differ from stock attention's by {error:.1e} of their size")
    return error


def _prompt_tokens(forward: Forward) -> int:
    window = min(forward.geometry.windows, default=0)
    return min(max(SHORTEST_PROMPT, window + 8), LONGEST_PROMPT)


def _ours(forward: Forward, tokens: Tensor, model: PreTrainedModel) -> Tensor:
    """Logits `[STEPS + 1, 2, vocabulary]` of the last tokens: filled in two packed chunks, then decoded together."""
    filled = tokens.shape[1] - STEPS
    half = filled // 2
    rectangle = Rectangle(
        forward.geometry.shapes, capacity=2, columns=tokens.shape[1], dtype=model.dtype, device=model.device
    )
    for start, stop in ((0, half), (half, filled)):
        spans = [Span(row, start, stop - start) for row in range(2)]
        logits, _ = forward.fill(rectangle, spans, tokens[:, start:stop].flatten().tolist())
    found = [logits]
    for at in range(filled, tokens.shape[1]):
        spans = [Span(row, at, 1) for row in range(2)]
        logits, _ = forward.decode(rectangle, spans, tokens[:, at].tolist())
        found.append(logits)
    return torch.stack(found)
