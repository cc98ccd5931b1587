"""What a model is, found by running it once: each layer's geometry and which columns its tokens see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from baton.errors import LoadError
from baton.kv.rectangle import LayerShape
from baton.model.attention import EVERYTHING, Look
from baton.model.cache import layers_of

PROBE = "baton_probe"
PROBE_TOKENS = 4


@dataclass(frozen=True, slots=True)
class MaskKind:
    """What a mask says, in place of the mask. `problem`: why a layer that uses it is not batched (models make masks of
    kinds that no layer of theirs uses)."""

    look: Look = EVERYTHING
    problem: str | None = None

    def __getitem__(self, _: object) -> MaskKind:
        """Some models slice their mask; what it means does not change."""
        return self


@dataclass(frozen=True, slots=True)
class Geometry:
    """`shapes[l]`: what cache layer l keeps; `looks[l]`: what tokens see in attention layer l."""

    shapes: tuple[LayerShape, ...]
    looks: dict[int, Look]

    @property
    def windows(self) -> list[int]:
        """The sizes of windows and chunks that there are, smallest first."""
        return sorted({size for look in self.looks.values() for size in (look.window, look.chunk) if size})


@dataclass
class _Record:
    looks: dict[int, Look] = field(default_factory=dict)
    problems: set[str] = field(default_factory=set)


class _ProbeLayer(CacheLayerMixin):
    """A cache layer that keeps nothing but the shapes of what it was given."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.shape: LayerShape | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.shape = LayerShape(key_states.shape[1], key_states.shape[3], value_states.shape[3])
        return key_states, value_states

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Keeps nothing."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def probe(model: PreTrainedModel) -> Geometry:
    """One forward of a few tokens with recording attention and masks.

    Raises LoadError, with the reason, for a model whose attention is not one that is batched exactly so far.
    """
    record = _Record()
    AttentionInterface.register(PROBE, _recording_attention(record))
    AttentionMaskInterface.register(PROBE, _recording_mask)
    use_attention(model, PROBE)
    layers = [_ProbeLayer() for _ in layers_of(model.config)]
    tokens = torch.zeros(1, PROBE_TOKENS, dtype=torch.int64, device=model.device)
    positions = torch.arange(PROBE_TOKENS, device=model.device)[None]
    with torch.inference_mode():
        model(input_ids=tokens, position_ids=positions, past_key_values=Cache(layers=[*layers]), use_cache=True)
    if record.problems:
        raise LoadError(f"its attention {', '.join(sorted(record.problems))}, which is not batched exactly so far")
    if not record.looks:
        raise LoadError("its attention does not go through transformers' attention interface, so it is not batched yet")
    shapes = [layer.shape for layer in layers]
    if any(shape is None for shape in shapes) or set(record.looks) != set(range(len(shapes))):
        raise LoadError("some of its layers keep no keys and values, or share them; not batched exactly so far")
    return Geometry(tuple(shape for shape in shapes if shape is not None), record.looks)


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Switches to a registered attention. Raises LoadError where the model does not take it."""
    model.set_attn_implementation(name)
    found = model.config.get_text_config()._attn_implementation
    if found != name:
        raise LoadError(f"it keeps its own attention ({found}), so it is not batched yet")


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
        record.looks[int(module.layer_idx)] = replace(mask.look, softcap=softcap)  # type: ignore[arg-type]
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
    """Finds the kind of a mask by asking its function about a few pairs of positions."""
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
        return MaskKind(Look(window=local_size))
    if local_size and sees(far - 1, 0) and not sees(2 * far, far - 1) and sees(2 * far - 1, far):
        return MaskKind(Look(chunk=local_size))
    return MaskKind(problem="has a mask of a kind of its own")
