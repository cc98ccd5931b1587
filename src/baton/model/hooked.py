"""A stock model with our cache and, if it takes it, our attention: one call of it over one layout."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache

from baton.core.errors import LoadError
from baton.model.attention import Layout, ModelAttention
from baton.model.cache import Current, StateLayer, Step, layers_of
from baton.model.padded import Padded
from baton.model.probe import Geometry, call, own_words, use_attention
from baton.model.rotary import long_rope_limit, recompute_limit, rotate_by_row
from baton.model.visibility import Visibility

BY_TOKEN = "batched_mm"
EXPERTS = {
    "grouped_mm": "experts in one product",
    BY_TOKEN: "experts token by token",
    "eager": "experts one by one",
}
"""How transformers computes experts, by its own names, with words for people."""

_engines = itertools.count()


class Compiled(Protocol):
    """A model's compiled layers. `cache`: what they keep columns in."""

    cache: Cache

    def in_use(self) -> AbstractContextManager[None]:
        """Inside it, calls of the model go through the compiled layers."""


class Hooked:
    """`ours`: our attention; else the model keeps its own.

    `long_rope_limit`, `recompute_limit`: see `model/rotary.py`.
    """

    def __init__(self, model: PreTrainedModel, geometry: Geometry, *, ours: bool) -> None:
        self.long_rope_limit, self.recompute_limit = long_rope_limit(model), recompute_limit(model)
        self.model = model
        self._current = Current()
        layers = layers_of(self._current, model.config)
        self.cache = Cache(layers=layers)
        self.compiled: dict[str, Compiled] = {}
        """Its compiled layers, by backend of torch.compile."""
        self._states = [
            (at, layer, states)
            for at, layer in enumerate(layers)
            if isinstance(layer, StateLayer) and (states := geometry.shapes[at].states)
        ]
        self.attention = ""
        """The name of our attention in transformers' registry; empty if the model keeps its own."""
        self._picks_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        if ours:
            # A name per engine, because two engines in a process have each their own steps.
            self.attention = f"baton_{next(_engines)}"
            AttentionInterface.register(self.attention, _attention(self._current, geometry.visibilities))
            use_attention(model, self.attention)
        rotate_by_row(model, self._lengths)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def recurrent(self) -> bool:
        return bool(self._states)

    @property
    def experts(self) -> str | None:
        """How its experts are computed, see EXPERTS; None if it has none, or if they cannot be switched."""
        can_be_told = getattr(self.model, "_can_set_experts_implementation", lambda: False)()
        return getattr(self.model.config.get_text_config(), "_experts_implementation", None) if can_be_told else None

    def _lengths(self) -> tuple[Sequence[int], Callable[[Tensor], Tensor]] | None:
        step = getattr(self._current, "step", None)
        return None if step is None else (step.shape.lengths(), step.shape.by_place)

    @contextmanager
    def computing_experts(self, how: str | None) -> Iterator[None]:
        """Computes experts in this way inside it; None changes nothing."""
        if how is None:
            yield
            return
        before = self.model.get_experts_implementation()
        self.model.set_experts_implementation(how)
        try:
            yield
        finally:
            self.model.set_experts_implementation(before)

    def experts_by_row(self) -> None:
        """Makes experts compute each token by itself, whatever its neighbours chose. Raises LoadError."""
        if getattr(self.model.config.get_text_config(), "_experts_implementation", None) is None:
            return
        try:
            self.model.set_experts_implementation(BY_TOKEN)
        except (ValueError, AttributeError, RuntimeError) as error:
            raise LoadError(own_words("its experts cannot be computed row by row", error)) from error

    def run(
        self, shape: Layout, ids: Tensor, positions: Tensor, last: Tensor | None, *, compiled: Compiled | None = None
    ) -> tuple[Tensor, Callable[[], None]]:
        """Returns float32 logits, and a function that writes the rest of the result into the rectangle.

        `ids` and `positions` `[B, T]`. Logits `[B, vocabulary]` of the only token of each row if `last` is None; else
        `[len(last), vocabulary]` of these slots, rows one after the other. `compiled`: runs these instead of its
        layers; only with our attention.
        """
        self._current.step = Step(shape.rectangle, shape, ids.shape[1])
        self._load(shape)
        padded = isinstance(shape, Padded)
        picked = {"logits_to_keep": last} if last is not None and not padded and self._picks_logits else {}
        mask = {"attention_mask": shape.mask} if isinstance(shape, ModelAttention) else {}
        with (
            torch.inference_mode(),
            self._only_last(last if padded else None),
            nullcontext() if compiled is None else compiled.in_use(),
        ):
            try:
                cache = self.cache if compiled is None else compiled.cache
                logits = call(self.model, ids, positions, cache, **picked, **mask).logits
                states = [(at, layer.named_states()) for at, layer, _ in self._states]
            finally:
                # transformers' registry of attention functions lives as long as the process, so it must not keep rows.
                del self._current.step
                for _, layer, _ in self._states:
                    layer.drop()
        if last is None:
            logits = logits[: len(shape.spans), 0]
        elif padded:
            logits = logits[:, 0]
        elif picked:
            logits = logits[0]
        else:
            logits = logits[0, last]
        return logits.float(), lambda: self._commit(shape, states)

    def _load(self, shape: Layout) -> None:
        if not self._states:
            return
        rows = _row_of_each(shape)
        begun = shape.spans[0].start > 0
        for at, layer, shapes in self._states:
            layer.take(shapes, [state.index_select(0, rows) for state in shape.rectangle.states[at]], begun=begun)

    def _commit(self, shape: Layout, states: list[tuple[int, list[tuple[str, Tensor]]]]) -> None:
        with torch.inference_mode():
            shape.commit()
            if not states:
                return
            rows = _row_of_each(shape)
            for at, layer_states in states:
                for buffer, (_, state) in zip(shape.rectangle.states[at], layer_states, strict=True):
                    buffer.index_copy_(0, rows, state)

    @contextmanager
    def _only_last(self, last: Tensor | None) -> Iterator[None]:
        """Lets the output layer see only these slots: `logits_to_keep` can only name columns common to all rows."""
        if last is None:
            yield
            return

        def pick(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0].flatten(0, 1)[last][:, None], *inputs[1:])

        handle = self.model.get_output_embeddings().register_forward_pre_hook(pick)
        try:
            yield
        finally:
            handle.remove()


def _row_of_each(shape: Layout) -> Tensor:
    return torch.tensor([span.row for span in shape.spans], device=shape.rows.device)


def _attention(current: Current, visibilities: Mapping[int, Visibility]) -> Callable[..., tuple[Tensor, None]]:
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
        visibility = visibilities[module.layer_idx]  # type: ignore[index]
        return current.step.shape.attend(query, key, value, scaling, visibility, s_aux), None

    return attend
