"""What a model is, from its config alone: no weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from baton.core.errors import LoadError
from baton.core.footprint import Footprint
from baton.core.generation_defaults import NO_DEFAULTS, GenerationDefaults, defaults_of
from baton.kv.rectangle import LayerShape, footprint
from baton.loader.context import context
from baton.loader.folder import read_json
from baton.loader.gguf_file import place_of
from baton.loader.hub import Place
from baton.loader.packings import packed_format
from baton.loader.stock import build, read_config, stored_bytes
from baton.loader.wanted import saved_dtype
from baton.model.probe import Geometry, own_words, probe
from baton.native.forward import with_copies
from baton.native.library import best
from baton.native.packing import Packing

# The meta kernels of grouped matrix products know only bfloat16; shapes do not depend on it.
_SURVEYED = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Survey:
    """Shapes and sizes. `refused`: why the model would not be batched, or None.

    `packed`: the format in which a CPU keeps its linear layers as they are, and `stored_bytes` of the whole checkpoint;
    None if it is not packed, or not here. `linear` and `head`: parameters of linear layers without the output layer,
    and of the output layer. `embedding`: of an embedding that is not the output layer too.
    """

    family: str
    parameters: int
    linear: int
    head: int
    layers: int
    vocabulary: int
    context_tokens: int
    context_source: str
    saved_dtype: str
    geometry: Geometry | None
    refused: str | None
    generation: GenerationDefaults = NO_DEFAULTS
    packed: str | None = None
    stored_bytes: int | None = None
    embedding: int = 0

    def weight_bytes(self, dtype: torch.dtype, packing: Packing) -> int:
        """About the bytes of all weights, with linear layers packed."""
        bits = 8 * dtype.itemsize
        rest = self.parameters - self.linear - self.head
        total = bits * rest + (packing.bits or bits) * self.linear + (packing.of(head=True).bits or bits) * self.head
        return int(total / 8)

    def footprint(self, dtype: torch.dtype) -> Footprint:
        """What a query of the whole context takes on the CPU; nothing if the model is refused."""
        shapes: Sequence[LayerShape] = [_in(dtype, shape) for shape in self.geometry.shapes] if self.geometry else []
        shapes = with_copies(shapes) if best() is not None else shapes
        return footprint(shapes, self.context_tokens, dtype, torch.device("cpu"))


def _generation(place: Place) -> GenerationDefaults:
    """The sampling defaults of the model's author."""
    name = "generation_config.json"
    return defaults_of(read_json(place.folder, name, place.source)) if name in place.names else NO_DEFAULTS


def _in(dtype: torch.dtype, shape: LayerShape) -> LayerShape:
    """States with the dtype in which the model was surveyed are kept in the model's own dtype."""
    states = [replace(s, dtype=dtype if s.dtype is _SURVEYED else s.dtype) for s in shape.states]
    return replace(shape, states=tuple(states))


def _probed(model: PreTrainedModel) -> tuple[Geometry | None, str | None]:
    """What its layers keep, or why that is unknown. Whether it is exact shows only when it is loaded."""
    reason = None
    for interface in (True, False):
        try:
            return probe(model, interface=interface), None
        except LoadError as error:
            reason = error.message
        except Exception as error:
            reason = own_words("it does not run with our cache", error)
    return None, reason


def survey(source: str, *, trust_remote_code: bool = False, on_cpu: bool = True) -> Survey:
    """Builds the model without memory, on torch's meta device, and probes it there. Raises LoadError.

    `on_cpu`: whether it is to run on one, where packed layers stay packed.
    """
    place = place_of(source, code=trust_remote_code)
    config = read_config(place, trust_remote_code=trust_remote_code)
    packed = packed_format(config, place.source) if on_cpu else None
    # Building the model writes into its config.
    text, saved = config.get_text_config(), saved_dtype(config)
    model = build(place, config, dtype=_SURVEYED, trust_remote_code=trust_remote_code)
    geometry, refused = _probed(model)
    head = getattr(model.get_output_embeddings(), "weight", None)
    linear = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, (nn.Linear, Conv1D))}
    output = linear.pop(id(head), 0)
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    model_context = context(config)
    return Survey(
        family=config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(linear.values()),
        head=output,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        context_tokens=model_context.tokens,
        context_source=model_context.source,
        saved_dtype=saved,
        geometry=geometry,
        refused=refused,
        generation=_generation(place),
        embedding=0 if embedding is None or embedding is head else embedding.numel(),
        packed=None if packed is None else packed.name,
        stored_bytes=None if packed is None else stored_bytes(place),
    )
