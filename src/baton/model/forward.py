"""One forward of the stock model over rows of a rectangle: the only place where the model is called."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from baton.kv.rectangle import Rectangle
from baton.model import attention
from baton.model.attention import Look, Shape, Span
from baton.model.cache import Current, Step, cache
from baton.model.probe import Geometry, use_attention

_engines = itertools.count()


class Forward:
    """Feeds tokens and answers logits. Not thread-safe: one thread calls it, its engine's."""

    def __init__(self, model: PreTrainedModel, geometry: Geometry) -> None:
        self.geometry = geometry
        self._model = model
        self._current = Current()
        self._cache = cache(self._current, len(geometry.shapes))
        self._picks_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        # A name per engine: two engines in a process have each their own steps.
        name = f"baton_{next(_engines)}"
        AttentionInterface.register(name, _attention(self._current, geometry.looks))
        use_attention(model, name)

    def decode(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, Shape]:
        """One token per row in a batch `[n, 1]`: logits `[n, vocabulary]` in float32, and how it was shaped."""
        shape = attention.decode(spans, rectangle)
        ids = torch.tensor(tokens, device=rectangle.device)[:, None]
        return self._run(rectangle, shape, ids, shape.cols[:, None], None)[:, 0], shape

    def fill(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, Shape]:
        """All tokens flat `[1, N]`: logits `[spans, vocabulary]` in float32 of each span's last token."""
        shape = attention.fill(spans, rectangle)
        ids = torch.tensor(tokens, device=rectangle.device)[None]
        last = torch.tensor([end - 1 for end in itertools.accumulate(span.count for span in spans)])
        return self._run(rectangle, shape, ids, shape.cols[None], last.to(rectangle.device))[0], shape

    def padded(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, Shape]:
        """Rows aligned to the longest span, `[n, T]`: logits `[n, vocabulary]` in float32 of each row's last token."""
        shape = attention.padded(spans, rectangle)
        longest = max(span.count for span in spans)
        device = rectangle.device
        ids = torch.zeros(len(spans) * longest, dtype=torch.int64, device=device)
        ids[shape.kept] = torch.tensor(tokens, device=device)
        positions = torch.zeros_like(ids)
        positions[shape.kept] = shape.cols
        last = torch.tensor([span.count - 1 for span in spans], device=device)
        with self._only_last(last):
            logits = self._run(rectangle, shape, ids.view(-1, longest), positions.view(-1, longest), None)
        return logits[:, 0], shape

    def _run(self, rectangle: Rectangle, shape: Shape, ids: Tensor, positions: Tensor, keep: Tensor | None) -> Tensor:
        self._current.step = Step(rectangle, shape)
        picked = {"logits_to_keep": keep} if keep is not None and self._picks_logits else {}
        with torch.inference_mode():
            try:
                out = self._model(
                    input_ids=ids, position_ids=positions, past_key_values=self._cache, use_cache=True, **picked
                )
            finally:
                # transformers' registry of attention functions lives as long as the process: it must not keep rows.
                del self._current.step
            logits: Tensor = out.logits
            if keep is not None and not picked:
                logits = logits[:, keep]
            return logits.float()

    @contextmanager
    def _only_last(self, last: Tensor) -> Iterator[None]:
        """The output layer sees one token per row: `logits_to_keep` can name only columns common to all rows."""
        rows = torch.arange(len(last), device=last.device)

        def pick(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0][rows, last][:, None], *inputs[1:])

        handle = self._model.get_output_embeddings().register_forward_pre_hook(pick)
        try:
            yield
        finally:
            handle.remove()


def _attention(current: Current, looks: Mapping[int, Look]) -> Callable[..., tuple[Tensor, None]]:
    """The attention function that stock layers call, see transformers' `AttentionInterface`."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: object,
        dropout: float = 0.0,
        scaling: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        look = looks[module.layer_idx]  # type: ignore[index]
        return current.step.shape.attend(query, key, value, scaling, look, s_aux), None

    return attend
