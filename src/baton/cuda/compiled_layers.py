"""A stock model's layers compiled: what stands between one attention and the next becomes a few kernels.

Layers are alike, so one is compiled, with the number of rows left open, and serves all of them at every number of rows;
a model compiled whole takes as long again for each (lab-notes 2026-11-21, "compiled layers"). Attention and cache stay
outside of what is compiled: they are kernels of our own, and which layer asks is known only there.
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
"""Of backends: what is computed is rounded where the model rounds, so that tokens are those that it gives alone."""

# Kinds of layers, such as those with a window and those without, times one row or more of them.
_MOST_KINDS = 16


class OutsideCache(Cache):
    """A stock cache of which a compiler sees nothing but that it is called."""

    update = torch.compiler.disable(Cache.update)


def compiled_layers(hooked: Hooked, backend: str) -> Compiled:
    """The layers of this model by this backend, compiled once however many steps are made of them. Raises LoadError."""
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
        """Calls of the model go through what is compiled."""
        try:
            use_attention(self._model, self._outside)
            for layer, forward in zip(self._layers, self._forwards, strict=True):
                layer.forward = forward
            # The number of a layer is no constant, or each would be compiled for itself.
            with torch._dynamo.config.patch(
                allow_unspec_int_on_nn_module=True, recompile_limit=_MOST_KINDS, fail_on_recompile_limit_hit=True
            ):
                yield
        finally:
            for layer in self._layers:
                vars(layer).pop("forward", None)
            use_attention(self._model, self._attention)


def outside(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, of which a compiler sees nothing but that it is called."""
    found: Callable[..., Any] = torch.compiler.disable(function)
    return found


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    count = model.config.get_text_config().num_hidden_layers
    for modules in model.modules():
        if isinstance(modules, nn.ModuleList) and len(modules) == count:
            return list(modules)
    raise LoadError("its layers are in no list, to be compiled one for all")
