"""Our cache layers inside a stock `Cache`: keys, values and states go to the rectangle's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from baton.core.errors import LoadError
from baton.kv.rectangle import Rectangle, StateShape
from baton.model.attention import Layout, ModelAttention


@dataclass(slots=True)
class Step:
    """What the running forward works on; set before the model is called, read by cache and attention.

    `tokens`: how many each of the model's rows is fed. `kept`: layers that have got their keys and values.
    """

    rectangle: Rectangle
    shape: Layout
    tokens: int
    kept: set[int] = field(default_factory=set)

    def held(self, layer: int) -> int | Tensor:
        """How many tokens a layer's rows hold; it includes the fed ones once the layer has them, as in stock."""
        before = self.shape.before()
        return before + self.tokens if layer in self.kept else before


class Current:
    """Holds the running step: one per engine, shared by its cache layers and its attention function."""

    step: Step


class RectangleLayer(CacheLayerMixin):
    """Writes a layer's new keys and values into the rectangle and returns what the step's layout gives.

    Nothing that a model asks depends on the rectangle's width. `longest`: what stock returns for this layer.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, current: Current, layer: int, longest: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._current = current
        self._layer = layer
        self._longest = longest

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        step = self._current.step
        step.kept.add(self._layer)
        return step.shape.keep(self._layer, key_states, value_states)

    def lazy_initialization(self, *args: object, **kwargs: object) -> None:
        """Nothing to do: the rectangle has the memory."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        shape = self._current.step.shape
        if not isinstance(shape, ModelAttention):
            raise LoadError("it asks the cache how many columns it has, which is another number for each row")
        return shape.width, 0

    def get_seq_length(self) -> int:
        # Not always a number: what a model makes of it is then right for each row, or fails.
        return self._current.step.held(self._layer)  # type: ignore[return-value]

    def get_max_length(self) -> int:
        return self._longest


class StateLayer(LinearAttentionLayer):
    """A recurrent layer as in stock. While a forward runs it holds the states of the rows that are fed."""

    def take(self, shapes: Sequence[StateShape], states: Sequence[Tensor], *, begun: bool) -> None:
        """Copies the rows' states `[n, ...]`; if the rows have not begun, stock makes new ones itself."""
        self.drop()
        if not begun:
            return
        for shape, state in zip(shapes, states, strict=True):
            kind, at = shape.name.split(".")
            getattr(self, kind)[int(at)] = state
            getattr(self, f"is_{kind}_initialized")[int(at)] = True
            if kind == "conv_states":
                self.conv_kernel_size[int(at)] = state.shape[-1]
        self.dtype, self.device = states[0].dtype, states[0].device  # type: ignore[assignment]
        self.has_previous_state = dict.fromkeys(range(self.number_of_states), True)

    def named_states(self) -> list[tuple[str, Tensor]]:
        """The states with their names, in a fixed order."""
        kinds = (("conv_states", self.conv_states), ("recurrent_states", self.recurrent_states))
        named = [(f"{kind}.{at}", states[at]) for at in range(self.number_of_states) for kind, states in kinds]
        return [(name, state) for name, state in named if state is not None]

    def drop(self) -> None:
        """Resets the layer."""
        every = range(self.number_of_states)
        self.conv_states, self.recurrent_states = dict.fromkeys(every), dict.fromkeys(every)
        self.is_conv_states_initialized = dict.fromkeys(every, False)
        self.is_recurrent_states_initialized = dict.fromkeys(every, False)
        self.has_previous_state = dict.fromkeys(every, False)


class LateStates(StateLayer):
    """States of a layer that also keeps columns: they are made when they come, which is later."""

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        if kwargs:
            super().lazy_initialization(**kwargs)

    def get_max_length(self) -> int:
        return -1


class HybridLayer(LateStates, RectangleLayer):  # type: ignore[override]
    """Keys and values, and states, in one layer."""

    def __init__(self, current: Current, layer: int, longest: int, number_of_states: int) -> None:
        RectangleLayer.__init__(self, current, layer, longest)
        StateLayer.__init__(self, number_of_states=number_of_states)

    def get_max_length(self) -> int:
        return RectangleLayer.get_max_length(self)


def stock_layers(config: Any) -> list[Any]:
    """The stock cache layers of this model, one per decoder layer. Raises LoadError for kinds that are not known."""
    layers: list[Any] = list(DynamicCache(config=config).layers)
    for index, layer in enumerate(layers):
        if not (keeps_columns(layer) or keeps_states(layer) or is_empty(layer)) or isinstance(layer, _INDEXED):
            raise LoadError(f"layer {index} keeps its state in a {type(layer).__name__}, which cannot be moved by rows")
    return layers


def keeps_columns(layer: object) -> bool:
    return isinstance(layer, DynamicLayer)


def keeps_states(layer: object) -> bool:
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def is_empty(layer: object) -> bool:
    """Layers without attention, or with another layer's keys and values."""
    return type(layer).__name__ == "DummyLayer"


# Layers with an index of sparse attention beside their keys; older versions of transformers have none.
_INDEXED = tuple(kind for name in ("DynamicIndexedLayer",) if (kind := getattr(cache_utils, name, None)) is not None)


def layers_of(current: Current, config: Any) -> list[Any]:
    """Our layers in place of the stock ones. One list can be reused, because all data is in the rectangle."""
    ours: list[Any] = []
    for index, stock in enumerate(stock_layers(config)):
        if keeps_columns(stock) and keeps_states(stock):
            ours.append(HybridLayer(current, index, stock.get_max_length(), stock.number_of_states))
        elif keeps_states(stock):
            ours.append(StateLayer(number_of_states=stock.number_of_states))
        elif keeps_columns(stock):
            ours.append(RectangleLayer(current, index, stock.get_max_length()))
        else:
            ours.append(stock)
    return ours
