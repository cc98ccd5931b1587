"""What a model is, from its config alone: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from baton.errors import LoadError
from baton.footprint import Footprint
from baton.kv.rectangle import footprint
from baton.model.load import context_of, read_config
from baton.model.probe import Geometry, probe


@dataclass(frozen=True, slots=True)
class Survey:
    """Shapes and sizes. `refused`: why the model would not be batched, or None."""

    family: str
    parameters: int
    layers: int
    vocabulary: int
    context_tokens: int
    saved_dtype: str
    geometry: Geometry | None
    refused: str | None

    def footprint(self, dtype: torch.dtype) -> Footprint:
        """What a query of the whole context takes on the CPU; nothing where the model is refused."""
        shapes = self.geometry.shapes if self.geometry else ()
        return footprint(shapes, self.context_tokens, dtype, torch.device("cpu"))


def survey(source: str, *, trust_remote_code: bool = False) -> Survey:
    """Builds the model without memory, on torch's meta device, and probes it there. Raises LoadError."""
    config = read_config(source, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    saved = getattr(text, "dtype", None) or getattr(config, "dtype", None) or "float32"
    with torch.device("meta"):
        # The meta kernels of grouped matrix products know bfloat16 only; shapes do not depend on it.
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, trust_remote_code=trust_remote_code
        ).eval()
    geometry, refused = None, None
    try:
        geometry = probe(model)
    except LoadError as error:
        refused = error.message
    return Survey(
        family=config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        context_tokens=context_of(config),
        saved_dtype=str(saved).removeprefix("torch."),
        geometry=geometry,
        refused=refused,
    )
