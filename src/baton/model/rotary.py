"""Rotary embeddings that depend on a text's length (longrope, dynamic), each row by its own; stock uses the batch's.

Alone, stock rotates a token once, in the forward that feeds it, by that forward's length: the prompt's for all of a
prompt, its own position for a generated token. So a token's length follows from its position and from how many tokens
its text began with, whatever happens to its row. A few classes recompute a text when it grows beyond a length.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from baton.core.errors import LoadError
from baton.model.probe import cache_name, own_words

Lengths = Callable[[], tuple[Sequence[int], Callable[[Tensor], Tensor]] | None]
"""Returns each token's length for the running forward, and what lays such a tensor out as `[B, T]`.

None if the running forward is stock's.
"""

# A test of unknown rotary embeddings: whether the first positions depend on one that is far away.
_ASKED, _FAR = 4, 2**20


@dataclass(frozen=True, slots=True)
class _Kind:
    """One table of a rotary embedding. `limit`: up to so many tokens, nothing depends on a text's length.

    `growing`: beyond it every length has a table of its own (dynamic); else there is one for all (longrope). `prefix`:
    of the module's attributes, if layer types have tables of their own.
    """

    limit: int
    growing: bool
    prefix: str = ""

    @property
    def longest(self) -> int | None:
        """The length whose table serves all longer ones; None if there is none."""
        return None if self.growing else self.limit + 1

    def length(self, asked: int) -> int:
        """The smallest length with the same table as this one."""
        return max(self.limit, min(asked, self.longest or asked))

    def refresh(self, module: Any) -> None:
        """Resets the table: if tables grow, stock keeps the largest one for later texts."""
        if self.growing:
            setattr(module, f"{self.prefix}inv_freq", getattr(module, f"{self.prefix}original_inv_freq"))
            setattr(module, f"{self.prefix}max_seq_len_cached", self.limit)


def long_rope_limit(model: PreTrainedModel) -> int | None:
    """Up to so many tokens, nothing depends on a text's length; None if nothing ever does."""
    return min((kind.limit for _, kinds in _rotaries(model) for kind in kinds.values()), default=None)


def recompute_limit(model: PreTrainedModel) -> int | None:
    """When a text grows beyond so many tokens, stock's `generate` recomputes it; None if it does not.

    The class is asked, for each number that its config names. Raises LoadError if it does not answer.
    """
    if long_rope_limit(model) is None:
        return None
    prepare: Callable[..., dict[str, Any]] = model.prepare_inputs_for_generation  # type: ignore[assignment]
    name = cache_name(inspect.signature(prepare).parameters)
    for length in sorted(set(_numbers(model.config.get_text_config().to_dict()))):
        cache = DynamicCache(config=model.config)
        cache.get_seq_length = lambda *_, length=length: length  # type: ignore[method-assign]
        ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device).expand(1, length + 1)
        try:
            given = prepare(ids, next_sequence_length=1, **{name: cache})
        except Exception as error:
            raise LoadError(own_words("it does not say whether it recomputes long texts", error)) from error
        if not any(value is cache for value in given.values()):
            return length
    return None


def as_made(model: PreTrainedModel) -> None:
    """Forgets what earlier texts left in its rotary embeddings, so that stock gives the same as at first."""
    for module, kinds in _rotaries(model):
        for kind in kinds.values():
            kind.refresh(module)


def rotate_by_row(model: PreTrainedModel, lengths: Lengths) -> None:
    """Makes rotary embeddings use each token's length instead of the batch's.

    Raises LoadError for one whose result depends on the batch's in an unknown way.
    """
    known = dict(_rotaries(model))
    for name, module in model.named_modules():
        if module in known:
            module.forward = _by_row(module, known[module], lengths)
        elif _looks_at_the_longest(module):
            raise LoadError(f"{name} ({type(module).__name__}) rotates all rows by the longest text of a batch")


def must_rotate_beyond(model: PreTrainedModel) -> None:
    """Raises LoadError for a rotary embedding that fails with long texts, as stock itself would."""
    known = dict(_rotaries(model))
    for name, module in model.named_modules():
        if module in known:
            _try_beyond(name, module, known[module])


def _rotaries(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str | None, _Kind]]]:
    """The rotary embeddings that depend on lengths; for each, its tables by layer type, or by None."""
    for module in model.modules():
        named = getattr(module, "rope_type", None)
        types = named if isinstance(named, dict) else {None: named}
        kinds = {at: kind for at, rope_type in types.items() if (kind := _kind(module, at, rope_type)) is not None}
        if kinds:
            yield module, kinds


def _kind(module: Any, layer_type: str | None, rope_type: object) -> _Kind | None:
    prefix = "" if layer_type is None else f"{layer_type}_"
    # As transformers' `dynamic_rope_update` distinguishes them.
    if isinstance(rope_type, str) and "dynamic" in rope_type:
        return _Kind(int(module.original_max_seq_len), growing=True, prefix=prefix)
    if rope_type == "longrope":
        rope = module.config.rope_parameters
        rope = rope if layer_type is None else rope[layer_type]
        return _Kind(int(rope["original_max_position_embeddings"]), growing=False, prefix=prefix)
    return None


def _by_row(module: nn.Module, kinds: dict[str | None, _Kind], lengths: Lengths) -> Callable[..., Any]:
    stock = type(module).forward

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        kind, running = kinds.get(kwargs.get("layer_type", args[0] if args else None)), lengths()
        if kind is None or running is None:
            return stock(module, x, position_ids, *args, **kwargs)
        asked, laid_out = running
        rotated: tuple[Tensor, ...] = ()
        of_tokens = [kind.length(one) for one in asked]
        wanted = sorted(set(of_tokens))
        token_lengths = laid_out(torch.tensor(of_tokens, device=x.device)) if len(wanted) > 1 else None
        for length in wanted:
            kind.refresh(module)
            # Stock reads the highest position, so one added in front decides for all, and none is beyond it.
            front = torch.full_like(position_ids[..., :1], length - 1)
            near = position_ids if length == kind.longest else position_ids.clamp(max=length - 1)
            positions = torch.cat([front, near], dim=-1)
            out = stock(module, x, positions, *args, **kwargs)
            parts = tuple(part[..., 1:, :] for part in (out if isinstance(out, tuple) else (out,)))
            if rotated and token_lengths is not None:
                here = (token_lengths == length)[..., None]
                parts = tuple(torch.where(here, new, old) for new, old in zip(parts, rotated, strict=True))
            rotated = parts
        return rotated if isinstance(out, tuple) else rotated[0]

    return forward


def _try_beyond(name: str, module: Any, kinds: dict[str | None, _Kind]) -> None:
    """Rotates twice beyond each limit: older transformers raise the second time if longrope is by layer type."""
    twin = copy.deepcopy(module)
    twin.forward = partial(type(module).forward, twin)
    device = next(module.buffers()).device
    for layer_type, kind in kinds.items() if device.type != "meta" else ():
        more = {} if layer_type is None else {"layer_type": layer_type}
        positions = torch.full((1, 1), kind.limit, device=device)
        try:
            for _ in range(2):
                twin(torch.zeros(1, device=device), positions, **more)
        except Exception as error:
            raise LoadError(own_words(f"{name} fails beyond {kind.limit} tokens", error)) from error


def _looks_at_the_longest(module: Any) -> bool:
    """Whether another kind of rotary embedding rotates a token differently in a longer text."""
    if not hasattr(module, "inv_freq") or "position_ids" not in inspect.signature(module.forward).parameters:
        return False
    if module.inv_freq.device.type == "meta":
        return False  # there are no values to compare
    try:
        device = module.inv_freq.device
        positions = torch.arange(_ASKED, device=device)[None]
        far = torch.full_like(positions[:, :1], _FAR)
        x = torch.zeros(1, device=device)
        # A copy, because it may remember what it is asked.
        near = copy.deepcopy(module)(x, positions)
        long = copy.deepcopy(module)(x, torch.cat([positions, far], dim=1))
    except Exception:
        # It wants more than positions; the self-check compares what depends on that.
        return False
    pairs = zip(*(out if isinstance(out, tuple) else (out,) for out in (near, long)), strict=True)
    return not all(torch.equal(one, other[..., :_ASKED, :]) for one, other in pairs)


def _numbers(value: object) -> Iterator[int]:
    """The whole numbers in a config that could be a text's length."""
    if isinstance(value, dict):
        for one in value.values():
            yield from _numbers(one)
    elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
        yield value
