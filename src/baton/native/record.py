"""A stock model's step as a graph of torch's basic operations, recorded while the model runs once.

The model runs over rows of one token each, and torch's `make_fx` records all that it does with tensors. These
operations are ours: `keep`, by which a cache layer takes new keys and values, `attend`, for each call of attention,
`expert`, a product with the weights of those experts that each token chose, and `state` and `keep_state`, which read
and write a recurrent layer's state. The model's Python code runs while recording; if it depends on a tensor's values,
recording fails, and the model runs without native calls.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from baton.core.errors import LoadError
from baton.kv.rectangle import LayerShape, StateShape
from baton.model.cache import LateStates, StateLayer, is_empty, keeps_columns, keeps_states, stock_layers
from baton.model.experts import mixed
from baton.model.probe import call, probe, use_attention

ROWS = 7
"""The rows of a recorded step. No model has a dimension of this size, so it shows which dimension is the rows'."""

_NAME = "baton_record"

_LIBRARY = torch.library.Library("baton", "DEF")
_LIBRARY.define("keep(Tensor keys, Tensor values, int layer) -> (Tensor, Tensor)")
_LIBRARY.define("attend(Tensor q, Tensor keys, Tensor values, int module, float scale, Tensor? sinks) -> Tensor")
_LIBRARY.define("expert(Tensor x, Tensor index, Tensor weight) -> Tensor")
_LIBRARY.define("state(Tensor like, int layer, int at, int[] shape, ScalarType dtype) -> Tensor")
_LIBRARY.define("keep_state(Tensor state, int layer, int at) -> Tensor")


def _keep(keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    return keys.clone(), values.clone()


def _attend(q: Tensor, keys: Tensor, values: Tensor, module: int, scale: float, sinks: Tensor | None) -> Tensor:
    return q.new_zeros(q.shape[0], q.shape[2], q.shape[1], values.shape[3])


def _expert(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return x.new_zeros(*index.shape, weight.shape[1])


def _state(like: Tensor, layer: int, at: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return like.new_zeros(len(like), *shape, dtype=dtype)


def _keep_state(state: Tensor, layer: int, at: int) -> Tensor:
    return state.clone()


_LIBRARY.impl("keep", _keep, "CompositeExplicitAutograd")
_LIBRARY.impl("attend", _attend, "CompositeExplicitAutograd")
_LIBRARY.impl("expert", _expert, "CompositeExplicitAutograd")
_LIBRARY.impl("state", _state, "CompositeExplicitAutograd")
_LIBRARY.impl("keep_state", _keep_state, "CompositeExplicitAutograd")
KEEP = torch.ops.baton.keep.default
ATTEND = torch.ops.baton.attend.default
EXPERT = torch.ops.baton.expert.default
STATE = torch.ops.baton.state.default
KEEP_STATE = torch.ops.baton.keep_state.default


@dataclass(frozen=True, slots=True)
class Recorded:
    """A model's decode step as a graph of operations.

    `graph` takes token ids and positions `[ROWS, 1]` and returns logits `[ROWS, 1, vocabulary]`. Parameters are the
    model's own. `as_saved`: addresses of weights that are kept as they are, whatever others are packed in.
    """

    graph: GraphModule
    as_saved: frozenset[int] = frozenset()


class _Columns(CacheLayerMixin):
    """A cache layer that only records what it is given."""

    is_sliding = False
    is_compileable = True

    def __init__(self, layer: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layer = layer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        kept: tuple[Tensor, Tensor] = torch.ops.baton.keep(key_states, value_states, self._layer)
        return kept

    def lazy_initialization(self, *args: object, **kwargs: object) -> None:
        """Keeps nothing."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        raise LoadError("it asks the cache how many columns it has")

    def get_seq_length(self) -> int:
        # Only models that do not depend on it are recorded.
        return 0

    def get_max_length(self) -> int:
        return -1


class _Hybrid(LateStates, _Columns):  # type: ignore[override]
    """Keys and values, and states, in one layer."""

    def __init__(self, layer: int, number_of_states: int) -> None:
        _Columns.__init__(self, layer)
        StateLayer.__init__(self, number_of_states=number_of_states)


def record(model: PreTrainedModel, shapes: Sequence[LayerShape] | None = None) -> Recorded:
    """Runs the model once. Raises LoadError if it cannot be recorded.

    `shapes`: what its layers keep; None: to be found out, if there are states. The model computes attention and experts
    afterwards as before.
    """
    text = model.config.get_text_config()
    before = text._attn_implementation
    stock = stock_layers(model.config)
    if shapes is None and any(keeps_states(layer) for layer in stock):
        shapes = probe(model).shapes
        model.set_attn_implementation(before)
    kept_by = [shape.states for shape in shapes or ()]

    def step(ids: Tensor, positions: Tensor) -> Tensor:
        layers = [_recording(at, layer) for at, layer in enumerate(stock)]
        states = [(at, layer, kept_by[at]) for at, layer in enumerate(layers) if isinstance(layer, StateLayer)]
        for at, layer, kept in states:
            layer.take(kept, [_begun(ids, at, one, state) for one, state in enumerate(kept)], begun=bool(kept))
        logits: Tensor = call(model, ids, positions, Cache(layers=[*layers])).logits
        for at, layer, _ in states:
            for one, (_, state) in enumerate(layer.named_states()):
                torch.ops.baton.keep_state(state, at, one)
        return logits

    AttentionInterface.register(_NAME, _attention())
    try:
        use_attention(model, _NAME)
        # Different tokens and positions, so that a value which is the same for all rows does not depend on them.
        ids = torch.arange(ROWS, device=model.device)[:, None]
        with torch.no_grad(), _our_experts(model), _no_warnings(model), _no_collections(), _one_fake_mode():
            return Recorded(make_fx(step, {torch.ops.aten.bmm.default: _multiplied})(ids, ids + ROWS))
    except LoadError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:160]
        raise LoadError(f"its step cannot be recorded ({type(error).__name__}: {first})") from error
    finally:
        model.set_attn_implementation(before)


def _recording(at: int, stock: Any) -> Any:
    """The cache layer that records in place of a stock one."""
    if keeps_states(stock):
        kind = stock.number_of_states
        return _Hybrid(at, kind) if keeps_columns(stock) else StateLayer(number_of_states=kind)
    return stock if is_empty(stock) else _Columns(at)


def _begun(ids: Tensor, layer: int, at: int, state: StateShape) -> Tensor:
    """A state of a row that has begun."""
    read: Tensor = torch.ops.baton.state(ids, layer, at, state.shape, state.dtype)
    return read


def _multiplied(x: Tensor, y: Tensor) -> Tensor:
    """`bmm`, in which one weight was expanded to all rows: a product with that weight."""
    if x.stride(0) == 0 and y.shape[2] == 1:
        return torch.mm(y.squeeze(2), x[0].t()).unsqueeze(2)
    if y.stride(0) == 0:
        return torch.mm(x.reshape(-1, x.shape[2]), y[0]).view(*x.shape[:2], y.shape[2])
    return NotImplemented  # type: ignore[no-any-return]


@contextmanager
def _our_experts(model: PreTrainedModel) -> Iterator[None]:
    """Inside it, experts behind transformers' interface are computed by `_experts`."""
    can_be_told = getattr(model, "_can_set_experts_implementation", lambda: False)()
    if not can_be_told or model.get_experts_implementation() is None:
        yield
        return
    ALL_EXPERTS_FUNCTIONS.register(_NAME, _experts)
    before = model.get_experts_implementation()
    try:
        model.set_experts_implementation(_NAME)
        yield
    finally:
        model.set_experts_implementation(before)


def _experts(module: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """As transformers' own functions of experts."""

    def product(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = torch.ops.baton.expert(x, index, weight.transpose(-1, -2) if module.is_transposed else weight)
        return y

    return mixed(module, x, index, weights, product)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Recording makes many objects that stay; Python's garbage collector would scan them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _one_fake_mode() -> AbstractContextManager[object]:
    """Inside it, `make_fx` makes one mode for the shapes of all nodes, not one each: each reads the whole stack."""
    return tracing(TracingContext(FakeTensorMode()))


@contextmanager
def _no_warnings(model: PreTrainedModel) -> Iterator[None]:
    """Stock checks the tokens for padding in order to warn: in Python, which cannot be recorded."""
    name = "warn_if_padding_and_no_attention_mask"
    warning = [module for module in model.modules() if hasattr(type(module), name)]
    for module in warning:
        setattr(module, name, lambda *args: None)
    try:
        yield
    finally:
        for module in warning:
            delattr(module, name)


def _attention() -> Callable[..., tuple[Tensor, None]]:
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
        scale = float(scaling) if scaling is not None else query.shape[-1] ** -0.5
        return torch.ops.baton.attend(query, key, value, module.layer_idx, scale, s_aux), None

    return attend
