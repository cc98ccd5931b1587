"""Our cache layers inside a stock `Cache`: keys and values go to the rectangle's rows, wherever the step says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from baton.errors import LoadError
from baton.kv.rectangle import Rectangle
from baton.model.attention import Decode, Padded, Shape


@dataclass(slots=True)
class Step:
    """What the forward that is running works on; set before the model is called, read by cache and attention."""

    rectangle: Rectangle
    shape: Shape


class Current:
    """Holds the running step: one per engine, shared by its cache layers and its attention function."""

    step: Step


class RectangleLayer(CacheLayerMixin):
    """Writes a layer's new keys and values into the rectangle and answers its whole buffers `[R, C, H, D]`.

    Stock attention would not understand the answer; ours (`Shape.attend`) does.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, current: Current, layer: int) -> None:
        super().__init__()
        self._current = current
        self._layer = layer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        step = self._current.step
        keys, values = step.rectangle.keys[self._layer], step.rectangle.values[self._layer]
        shape = step.shape
        at = (shape.rows, shape.cols)
        keys.index_put_(at, _by_token(key_states, shape))
        values.index_put_(at, _by_token(value_states, shape))
        return keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the rectangle has the memory."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._current.step.rectangle.columns, 0

    def get_seq_length(self) -> int:
        return self._current.step.rectangle.columns - 1

    def get_max_length(self) -> int:
        return self._current.step.rectangle.columns


def _by_token(states: Tensor, shape: Shape) -> Tensor:
    """`[B, H, T, D]` -> `[tokens, H, D]`, real tokens only."""
    if isinstance(shape, Decode):
        return states[:, :, 0]
    flat = states.transpose(1, 2).flatten(0, 1)
    return flat[shape.kept] if isinstance(shape, Padded) else flat


def layers_of(config: Any) -> list[CacheLayerMixin]:
    """The stock cache layers of this model, one per decoder layer. Raises LoadError for kinds not batched yet."""
    layers: list[Any] = list(DynamicCache(config=config).layers)
    for index, layer in enumerate(layers):
        if not isinstance(layer, DynamicLayer):
            kind = type(layer).__name__
            message = f"layer {index} keeps its state in a {kind}, and only attention layers are batched exactly so far"
            raise LoadError(message)
    return layers


def cache(current: Current, count: int) -> Cache:
    """A stock cache whose layers are ours. One serves for ever: all state is in the rectangle and the step."""
    return Cache(layers=[RectangleLayer(current, layer) for layer in range(count)])
