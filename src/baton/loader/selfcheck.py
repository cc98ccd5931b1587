"""Checks at load that rows of a rectangle give what the stock model gives, and refuses by name what does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from baton.core.errors import LoadError
from baton.kv.rectangle import Rectangle, is_lazy
from baton.loader.upcast import can_be_lifted, kept_to, layers_of_all_kinds, lifted, tokens_of
from baton.model.packed_layers import count_weights
from baton.model.port import Forward
from baton.model.probe import call
from baton.model.rotary import as_made
from baton.model.visibility import Span

SHORTEST_PROMPT = 24
# If a long window needs a longer prompt than so many operations allow, only `baton check` checks it.
MOST_OPERATIONS = 3e11
STEPS = 4
# Two ways of computing are each about as far from float32 as the noise, which was measured on other tokens.
TIMES_NOISE = 4
# Of logits, relative to the largest: of a token that went to another expert than in the model alone.
OTHER_EXPERTS = 1.0
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check_texts(model: PreTrainedModel) -> list[Tensor]:
    """Two texts of different lengths, each `[tokens]`; one is longer than the smallest window, if that is cheap."""
    config = model.config.get_text_config()
    long = max(SHORTEST_PROMPT, min(windows_of(config), default=0) + 8)
    if 2 * count_weights(model) * long > MOST_OPERATIONS:
        long = SHORTEST_PROMPT
    generator = torch.Generator().manual_seed(0)
    lengths = (long + STEPS, SHORTEST_PROMPT - 7 + STEPS)
    return [torch.randint(tokens_of(model), (length,), generator=generator) for length in lengths]


def short_texts(model: PreTrainedModel) -> list[Tensor]:
    """Two texts of different lengths, each `[tokens]`, that any model takes."""
    generator = torch.Generator().manual_seed(0)
    lengths = (SHORTEST_PROMPT + STEPS, SHORTEST_PROMPT - 7 + STEPS)
    return [torch.randint(tokens_of(model), (length,), generator=generator) for length in lengths]


def windows_of(config: Any) -> list[int]:
    """The sizes of windows that a text config names."""
    return [size for name in _WINDOWS if isinstance(size := getattr(config, name, None), int) and size > 0]


# Different families have different names for it in their configs.
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")


def use_reference_attention(model: PreTrainedModel) -> None:
    """Older transformers silently leave out the softcap if attention is not their eager one."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")


def stock_logits(model: PreTrainedModel, texts: list[Tensor]) -> list[Tensor]:
    """The model's own logits for each text alone: float32 `[STEPS + 1, vocabulary]` of its last tokens.

    As `generate` does it: all but the last tokens at once, then one by one, with a stock cache.
    """
    return [alone(model, text, len(text) - STEPS) for text in texts]


def alone(model: PreTrainedModel, text: Tensor, prompt: int) -> Tensor:
    """The model's own logits for a text `[tokens]`, as `generate` does it: float32 `[answered + 1, vocabulary]`."""
    cache, text = DynamicCache(config=model.config), text.to(model.device)
    positions = torch.arange(len(text), device=text.device)
    as_made(model)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = []
    with torch.inference_mode():
        for start, stop in [(0, prompt), *((at, at + 1) for at in range(prompt, len(text)))]:
            out = call(model, text[None, start:stop], positions[None, start:stop], cache, **last)
            logits.append(out.logits[0, -1].float())
    return torch.stack(logits)


def at_once(model: PreTrainedModel, text: Tensor) -> Tensor:
    """The model's own logits for a text's last tokens as `stock_logits` returns them, in one forward."""
    cache, text = DynamicCache(config=model.config), text.to(model.device)
    positions = torch.arange(len(text), device=text.device)
    as_made(model)
    with torch.inference_mode():
        logits: Tensor = call(model, text[None], positions[None], cache).logits[0, -STEPS - 1 :].float()
    return logits


def tolerance_of(
    model: PreTrainedModel, texts: Sequence[Tensor], prompts: Sequence[int], expected: Sequence[Tensor]
) -> float | None:
    """How far logits may be off in the model's number format: a few times as far as stock is from itself in float32.

    Measured on as many of its layers as there is memory for, and scaled up; None if its numbers cannot be float32.
    `expected`: what `alone` gives for the texts.
    """
    some, every = layers_of_all_kinds(model)
    # All layers or, if that would take too much memory, one of each kind.
    layers = next((count for count in (every, some) if can_be_lifted(model, count)), 0)
    if not layers:
        return None
    pairs = list(zip(texts, prompts, strict=True))
    if layers < every:
        with kept_to(model, layers):
            expected = [alone(model, *pair) for pair in pairs]
    with lifted(model, layers):
        exact = [alone(model, *pair) for pair in pairs]
    expected = [one[:, : exact[0].shape[1]] for one in expected]
    return max(TIMES_NOISE * every / layers * largest(expected, exact), 2 * torch.finfo(model.dtype).eps)


def largest(ours: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of logits, relative to the largest logit of each text."""
    return max(float(one.max()) for one in _by_token(ours, expected))


def _by_token(ours: Sequence[Tensor], expected: Sequence[Tensor]) -> list[Tensor]:
    """As `largest`, of each token by itself: `[tokens]` for each text."""
    return [(a - b).abs().amax(-1) / b.abs().max() for a, b in zip(ours, expected, strict=True)]


def self_check(
    model: PreTrainedModel,
    forward: Forward,
    texts: list[Tensor],
    expected: list[Tensor],
    *,
    tolerance: float | None = None,
    choosing: bool = False,
    make: Callable[..., Rectangle] = Rectangle,
    columns: int = 0,
) -> float:
    """Compares a fill in two chunks and a few decode steps, one row for each text, with the texts alone.

    Returns the largest difference of logits relative to their largest. Raises LoadError above the tolerance, which is
    that of the model's dtype by default. `choosing`: tokens choose experts by rounded numbers. A near tie may then fall
    the other way, and gives this token other logits, so the tolerance is that of the median token; others may differ by
    up to OTHER_EXPERTS. `make`: makes the rectangle, of at least so many `columns`.
    """
    ours = our_logits(model, forward, texts, make, columns=columns)
    error = largest(ours, expected)
    if choosing and error <= OTHER_EXPERTS:
        error = float(torch.cat(_by_token(ours, expected)).median())
    if not error <= (tolerance or TOLERANCE.get(model.dtype, 1e-1)):
        raise LoadError(f"its logits differ from those of the model alone by {error:.1e} of their size")
    return error


def whatever_the_size(model: PreTrainedModel, forward: Forward, texts: list[Tensor], columns: int) -> None:
    """Raises LoadError if logits are not the same to the bit in rectangles with different numbers of columns.

    Both are as wide as the engine's or, on devices that would take that memory at once, as the texts are long.
    """
    longest = max(len(text) for text in texts)
    columns = max(columns if is_lazy(model.device) else 0, longest)
    other = another_size(columns, longest, forward.geometry.windows)
    if other is None:
        return
    logits, again = (our_logits(model, forward, texts, columns=size, steps=1) for size in (columns, other))
    if not all(a.equal(b) for a, b in zip(logits, again, strict=True)):
        raise LoadError("its logits depend on how many columns the rectangle has")


def another_size(columns: int, least: int, windows: Sequence[int]) -> int | None:
    """Another number of columns, at least `least`, in which the same layers are rings, but in another order."""
    sizes = (columns + 64, columns + 1, columns - 1)
    return next((n for n in sizes if n >= least and all((w < n) == (w < columns) for w in windows)), None)


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
        capacity=len(texts),
        columns=max(columns if is_lazy(model.device) else 0, *(len(text) for text in texts)),
        dtype=model.dtype,
        device=model.device,
    )
    filled = [len(text) - STEPS for text in texts]
    halves = [0 if forward.whole_prompts else count // 2 + 1 for count in filled]
    rows = range(len(texts))
    by_row: list[list[Tensor]] = [[] for _ in rows]
    for starts, stops in (([0] * len(texts), halves), (halves, filled)):
        if starts != stops:
            spans = [Span(row, starts[row], stops[row] - starts[row], filled[row]) for row in rows]
            tokens = [token for s in spans for token in texts[s.row][s.start : s.stop].tolist()]
            logits, ran = forward.fill(rectangle, spans, tokens)
            ran.commit()
    for step in range(steps + 1):
        for row in rows:
            by_row[row].append(logits[row])
        if step < steps:
            spans = [Span(row, filled[row] + step, 1, filled[row]) for row in rows]
            tokens = [int(texts[row][filled[row] + step]) for row in rows]
            logits, ran = forward.decode(rectangle, spans, tokens)
            ran.commit()
    return [torch.stack(some) for some in by_row]


def mixed_fills(model: PreTrainedModel, forward: Forward) -> None:
    """Runs fills in which rows with several tokens, with one and with none are side by side; returns nothing.

    For layouts that compare their own attention.
    """
    rectangle = Rectangle(forward.geometry.shapes, capacity=4, columns=32, dtype=model.dtype, device=model.device)
    for spans in (
        [Span(0, 0, 5), Span(2, 0, 1), Span(3, 0, 7)],
        [Span(0, 5, 1), Span(2, 1, 9), Span(3, 7, 1)],
        [Span(0, 6, 1), Span(3, 8, 1)],
    ):
        forward.fill(rectangle, spans, range(3, 3 + sum(span.count for span in spans)))[1].commit()
