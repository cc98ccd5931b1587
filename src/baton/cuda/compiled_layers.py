"""A stock model's layers compiled: everything between two attentions becomes a few kernels.

Layers are alike, so one is compiled, for any number of rows, and serves all of them; a whole compiled model takes as
long again for each number of rows (lab-notes 2026-11-21, "compiled layers"). Attention and cache are not compiled: they
are kernels of our own, and only they know which layer calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache

from baton.core.errors import LoadError
from baton.model.hooked import Compiled, Hooked
from baton.model.probe import use_attention

OPTIONS: dict[str, dict[str, Any]] = {"inductor": {"emulate_precision_casts": True}}
"""For each backend: results are rounded where the model rounds, so that tokens are the same as alone."""

# Kinds of layers, such as with and without a window, times one row or more of them.
_MOST_KINDS = 16


class OutsideCache(Cache):
    """A stock cache that a compiler sees only as a call."""

    update = torch.compiler.disable(Cache.update)


def compiled_layers(hooked: Hooked, backend: str) -> Compiled:
    """The layers of this model by this backend, compiled once for any number of steps. Raises LoadError."""
    if backend not in hooked.compiled:
        hooked.compiled[backend] = CompiledLayers(hooked, backend)
    return hooked.compiled[backend]


class CompiledLayers:
    """A `Compiled`. `backend`: of torch.compile. Raises LoadError."""

    def __init__(self, hooked: Hooked, backend: str) -> None:
        self._model = hooked.model
        self._attention = hooked.attention
        self._outside = f"{hooked.attention}_outside"
        AttentionInterface.register(self._outside, outside(AttentionInterface()[hooked.attention]))
        self.cache: Cache = OutsideCache(layers=hooked.cache.layers)
        self._layers = _layers(self._model)
        compile = partial(torch.compile, backend=backend, dynamic=True, options=OPTIONS.get(backend))
        self._forwards = [compile(layer.forward) for layer in self._layers]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside it, calls of the model go through the compiled layers."""
        try:
            use_attention(self._model, self._outside)
            for layer, forward in zip(self._layers, self._forwards, strict=True):
                layer.forward = forward
            # A layer's number must not be a constant, or each layer would be compiled.
            with torch._dynamo.config.patch(
                allow_unspec_int_on_nn_module=True, recompile_limit=_MOST_KINDS, fail_on_recompile_limit_hit=True
            ):
                yield
        finally:
            for layer in self._layers:
                vars(layer).pop("forward", None)
            use_attention(self._model, self._attention)


def outside(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which a compiler sees only as a call."""
    outside_function: Callable[..., Any] = torch.compiler.disable(function)
    return outside_function


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    count = model.config.get_text_config().num_hidden_layers
    for modules in model.modules():
        if isinstance(modules, nn.ModuleList) and len(modules) == count:
            return list(modules)
    raise LoadError("its layers are in no list, to be compiled one for all")
