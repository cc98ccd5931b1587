"""Proof at load that rows of a rectangle give what the stock model gives: refuses by name what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from baton.errors import LoadError
from baton.kv.rectangle import Rectangle, is_lazy
from baton.model.forward import Forward
from baton.model.look import Span
from baton.model.probe import call
from baton.model.rotary import as_made

SHORTEST_PROMPT = 24
# A longer prompt, for a longer window, costs so many operations at most; else `baton check` is where it is checked.
MOST_OPERATIONS = 3e11
STEPS = 4
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# Weights in 8 bits are other weights: this finds what is broken, `baton check` says how far off they are.
INT8_TOLERANCE = 2e-1


def check_texts(model: PreTrainedModel) -> list[Tensor]:
    """Two texts of different lengths, each `[tokens]`; one is longer than the smallest window, if that is cheap."""
    config = model.config.get_text_config()
    long = max(SHORTEST_PROMPT, min(windows_of(config), default=0) + 8)
    if 2 * sum(p.numel() for p in model.parameters()) * long > MOST_OPERATIONS:
        long = SHORTEST_PROMPT
    generator = torch.Generator().manual_seed(0)
    lengths = (long + STEPS, SHORTEST_PROMPT - 7 + STEPS)
    return [torch.randint(config.vocab_size, (length,), generator=generator) for length in lengths]


def windows_of(config: Any) -> list[int]:
    """The sizes of windows that a text config names."""
    return [size for name in _WINDOWS if isinstance(size := getattr(config, name, None), int) and size > 0]


# The names that families have for it in their configs.
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")


def use_reference_attention(model: PreTrainedModel) -> None:
    """Older transformers leave out the softcap, without a word, where attention is not their eager one."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")


def stock_logits(model: PreTrainedModel, texts: list[Tensor]) -> list[Tensor]:
    """What the model itself gives for each text alone: float32 `[STEPS + 1, vocabulary]` of its last tokens.

    As `generate` does it: all but the last tokens at once, those one by one, with a stock cache.
    """
    return [_alone(model, text.to(model.device)) for text in texts]


def _alone(model: PreTrainedModel, text: Tensor) -> Tensor:
    cache, first = DynamicCache(config=model.config), len(text) - STEPS
    positions = torch.arange(len(text), device=text.device)
    as_made(model)
    found = []
    with torch.inference_mode():
        for start, stop in [(0, first), *((at, at + 1) for at in range(first, len(text)))]:
            out = call(model, text[None, start:stop], positions[None, start:stop], cache)
            found.append(out.logits[0, -1].float())
    return torch.stack(found)


def self_check(
    model: PreTrainedModel,
    forward: Forward,
    texts: list[Tensor],
    expected: list[Tensor],
    *,
    tolerance: float | None = None,
    make: Callable[..., Rectangle] = Rectangle,
    columns: int = 0,
) -> float:
    """Compares a fill in two chunks and a few decode steps of two rows with what each gives alone.

    Answers the largest difference of logits relative to their largest; raises LoadError above the tolerance, that of
    the model's dtype if none is given. `make`: makes the rectangle, of so many `columns` at least.
    """
    found = our_logits(model, forward, texts, make, columns=columns)
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
    if not error <= (tolerance or TOLERANCE.get(model.dtype, 1e-1)):
        raise LoadError(f"its logits differ from those of the model alone by {error:.1e} of their size")
    return error


def whatever_the_size(model: PreTrainedModel, forward: Forward, texts: list[Tensor], columns: int) -> None:
    """Raises LoadError where logits are not the same to the bit in a rectangle of so many columns and in another one.

    Both as the engine's, or on devices where that memory would be taken at once, as wide as the texts are long.
    """
    longest = max(len(text) for text in texts)
    columns = max(columns if is_lazy(model.device) else 0, longest)
    windows = forward.geometry.windows
    for other in (columns + 64, columns + 1, columns - 1):
        # A ring in one and not in the other would be read in another order.
        if other < longest or any((size < columns) != (size < other) for size in windows):
            continue
        found, again = (our_logits(model, forward, texts, columns=size, steps=1) for size in (columns, other))
        if not all(a.equal(b) for a, b in zip(found, again, strict=True)):
            raise LoadError("its logits depend on how many columns the rectangle has")
        return


def our_logits(
    model: PreTrainedModel,
    forward: Forward,
    texts: list[Tensor],
    make: Callable[..., Rectangle] = Rectangle,
    *,
    columns: int = 0,
    steps: int = STEPS,
) -> list[Tensor]:
    """Logits `[steps + 1, vocabulary]` of each text's last tokens: filled in chunks, then decoded together."""
    rectangle = make(
        forward.geometry.shapes,
        capacity=2,
        columns=max(columns if is_lazy(model.device) else 0, *(len(text) for text in texts)),
        dtype=model.dtype,
        device=model.device,
    )
    filled = [len(text) - STEPS for text in texts]
    halves = [0 if forward.whole_prompts else count // 2 + 1 for count in filled]
    found: list[list[Tensor]] = [[], []]
    for starts, stops in (([0, 0], halves), (halves, filled)):
        if starts != stops:
            spans = [Span(row, starts[row], stops[row] - starts[row], filled[row]) for row in range(2)]
            tokens = [token for s in spans for token in texts[s.row][s.start : s.stop].tolist()]
            logits, ran = forward.fill(rectangle, spans, tokens)
            ran.commit()
    for step in range(steps + 1):
        for row in range(2):
            found[row].append(logits[row])
        if step < steps:
            spans = [Span(row, filled[row] + step, 1, filled[row]) for row in range(2)]
            tokens = [int(texts[row][filled[row] + step]) for row in range(2)]
            logits, ran = forward.decode(rectangle, spans, tokens)
            ran.commit()
    return [torch.stack(some) for some in found]


def mixed_fills(model: PreTrainedModel, forward: Forward) -> None:
    """Runs fills in which rows with several tokens, with one, and with none stand beside each other; answers nothing.

    For layouts that compare their own attention.
    """
    rectangle = Rectangle(forward.geometry.shapes, capacity=4, columns=32, dtype=model.dtype, device=model.device)
    for spans in (
        [Span(0, 0, 5), Span(2, 0, 1), Span(3, 0, 7)],
        [Span(0, 5, 1), Span(2, 1, 9), Span(3, 7, 1)],
        [Span(0, 6, 1), Span(3, 8, 1)],
    ):
        forward.fill(rectangle, spans, range(3, 3 + sum(span.count for span in spans)))[1].commit()
