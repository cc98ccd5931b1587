"""Finds out what a model is by running it once: each layer's geometry and which columns its tokens see."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from baton.core.errors import LoadError
from baton.kv.rectangle import LayerShape, StateShape
from baton.model.cache import LateStates, StateLayer, keeps_columns, keeps_states, stock_layers
from baton.model.visibility import EVERYTHING, Visibility

PROBE = "baton_probe"
PROBE_TOKENS = 4


@dataclass(frozen=True, slots=True)
class MaskKind:
    """What a mask says, in place of the mask.

    `problem`: why a layer that uses it is not batched. Models also make masks that no layer of theirs uses.
    """

    visibility: Visibility = EVERYTHING
    problem: str | None = None

    def __getitem__(self, _: object) -> MaskKind:
        """Some models slice their mask; its meaning does not change."""
        return self


@dataclass(frozen=True, slots=True)
class Geometry:
    """`shapes[l]`: what cache layer l keeps; `visibilities[l]`: what tokens see in attention layer l."""

    shapes: tuple[LayerShape, ...]
    visibilities: dict[int, Visibility]

    @property
    def windows(self) -> list[int]:
        """The sizes of all windows and chunks, smallest first."""
        return sorted(
            {
                size
                for visibility in self.visibilities.values()
                for size in (visibility.window, visibility.chunk)
                if size
            }
        )


@dataclass
class _Record:
    visibilities: dict[int, Visibility] = field(default_factory=dict)
    problems: set[str] = field(default_factory=set)


class _ProbeColumns(CacheLayerMixin):
    """A cache layer that keeps only the shapes of what it was given."""

    is_sliding = False
    shape: LayerShape | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.shape = LayerShape(key_states.shape[1], key_states.shape[3], value_states.shape[3])
        return key_states, value_states

    def lazy_initialization(self, *args: object, **kwargs: object) -> None:
        """Keeps nothing."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class _ProbeHybrid(LateStates, _ProbeColumns):  # type: ignore[override]
    """Both in one layer."""

    def __init__(self, number_of_states: int) -> None:
        _ProbeColumns.__init__(self)  # type: ignore[no-untyped-call]
        StateLayer.__init__(self, number_of_states=number_of_states)


def probe(model: PreTrainedModel, *, interface: bool = True) -> Geometry:
    """Runs a few tokens with recording caches and, with `interface`, recording attention and masks.

    Raises LoadError, with the reason, if the model's attention does not use transformers' interface, or sees what our
    attention cannot show it. Without `interface` only for layers whose data cannot be kept in rows, and for a cache in
    which nothing is kept.
    """
    record = _Record()
    if interface:
        AttentionInterface.register(PROBE, _recording_attention(record))
        AttentionMaskInterface.register(PROBE, _recording_mask)
        use_attention(model, PROBE)
    layers = [_recording_layer(stock) for stock in stock_layers(model.config)]
    tokens = torch.zeros(1, PROBE_TOKENS, dtype=torch.int64, device=model.device)
    positions = torch.arange(PROBE_TOKENS, device=model.device)[None]
    with torch.inference_mode():
        call(model, tokens, positions, Cache(layers=[*layers]))
    shapes = [_shape_of(layer) for layer in layers]
    if not any(shape.heads or shape.states for shape in shapes):
        # Stock is called with the same name: both would compute each token without the ones before it, and agree.
        raise LoadError("its forward takes a cache and keeps nothing in it")
    if interface:
        _check_attention(record, shapes)
        shapes = [
            replace(shape, window=_window(record.visibilities.get(at, EVERYTHING)) if shape.heads else 0)
            for at, shape in enumerate(shapes)
        ]
    return Geometry(tuple(shapes), record.visibilities)


def call(model: PreTrainedModel, tokens: Tensor, positions: Tensor, cache: Cache, **more: object) -> Any:
    """The model's forward, with its family's names for the arguments."""
    names = inspect.signature(model.forward).parameters
    if "position_ids" in names:
        more["position_ids"] = positions
    more[cache_name(names)] = cache
    return model(input_ids=tokens, use_cache=True, **more)


def cache_name(names: Collection[str]) -> str:
    """Which of a function's arguments takes the cache; the commonest name if none does, see `probe`."""
    return next((name for name in _CACHES if name in names), _CACHES[0])


# Its names in families and versions of transformers.
_CACHES = ("past_key_values", "cache_params", "cache")


def _recording_layer(stock: Any) -> Any:
    if keeps_columns(stock) and keeps_states(stock):
        return _ProbeHybrid(stock.number_of_states)
    if keeps_states(stock):
        return StateLayer(number_of_states=stock.number_of_states)
    return _ProbeColumns() if keeps_columns(stock) else stock  # type: ignore[no-untyped-call]


def _shape_of(layer: Any) -> LayerShape:
    shape = getattr(layer, "shape", None) or LayerShape()
    if not isinstance(layer, StateLayer):
        return shape
    states = tuple(StateShape(tuple(state.shape[1:]), state.dtype, name) for name, state in layer.named_states())
    return replace(shape, states=states)


def _window(visibility: Visibility) -> int:
    return visibility.window or visibility.chunk


def _check_attention(record: _Record, shapes: Sequence[LayerShape]) -> None:
    if record.problems:
        raise LoadError(f"its attention {', '.join(sorted(record.problems))}")
    if not record.visibilities and any(shape.heads for shape in shapes):
        raise LoadError("its attention does not go through transformers' attention interface")


def own_words(what: str, error: Exception) -> str:
    """The error of a family's own code, in one line."""
    first = (str(error).splitlines() or [""])[0][:200]
    return f"{what} ({type(error).__name__}: {first})"


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Switches to a registered attention. Raises LoadError if the model does not take it."""
    model.set_attn_implementation(name)
    implementation = model.config.get_text_config()._attn_implementation
    if implementation != name:
        raise LoadError(f"it keeps its own attention ({implementation})")


def _recording_attention(record: _Record) -> Callable[..., tuple[Tensor, None]]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: object,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        mask = MaskKind() if attention_mask is None else attention_mask
        if not isinstance(mask, MaskKind):
            mask = MaskKind(problem="has a mask of its own")
        if mask.problem:
            record.problems.add(mask.problem)
        softcap = float(kwargs.get("softcap") or 0.0)  # type: ignore[arg-type]
        record.visibilities[int(module.layer_idx)] = replace(mask.visibility, softcap=softcap)  # type: ignore[arg-type]
        record.problems.update(problem for name, problem in _UNKNOWN.items() if kwargs.get(name) is not None)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    return attention


_UNKNOWN = {"position_bias": "has a position bias"}


def _recording_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] | None = None,
    local_size: int | None = None,
    **kwargs: object,
) -> MaskKind:
    """Finds the kind of a mask by calling its function with a few pairs of positions."""
    if mask_function is None:
        return MaskKind()

    def sees(token: int, column: int) -> bool:
        zero = torch.zeros((), dtype=torch.int64)
        return bool(mask_function(zero, zero, zero + token, zero + column))

    far = local_size or PROBE_TOKENS
    if not sees(far, far) or sees(far, far + 1):
        return MaskKind(problem="is not causal")
    if sees(far, 0):
        return MaskKind()
    if local_size and sees(far, 1):
        return MaskKind(Visibility(window=local_size))
    if local_size and sees(far - 1, 0) and not sees(2 * far, far - 1) and sees(2 * far - 1, far):
        return MaskKind(Visibility(chunk=local_size))
    return MaskKind(problem="has a mask of a kind of its own")
