"""What a segment's keys and values are of: a name of model, weights and number format, the same in every process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

# So many numbers of each tensor, evenly spread, tell trainings of one architecture apart.
_SAMPLED = 256
# What of a config says where and by what it was made.
_OF_ITS_MAKING = ("_name_or_path", "transformers_version")


def weights_digest(model: PreTrainedModel) -> str:
    """Returns a digest of the config and of a sample of all weights, as they were loaded.

    A change of a few numbers in a large tensor may go unseen.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = {name: value for name, value in model.config.to_dict().items() if name not in _OF_ITS_MAKING}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        flat = tensor.detach().reshape(-1)
        at = torch.linspace(0, max(0, flat.numel() - 1), min(_SAMPLED, flat.numel()), dtype=torch.float64).long()
        sample = flat[at.to(flat.device)].cpu().contiguous().view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def stamp_of(weights: str, dtype: torch.dtype, quantize: str, shapes: Sequence[object]) -> str:
    """Returns the stamp of segments of a model. `shapes`: what its layers keep; `weights`: see `weights_digest`."""
    told = f"{weights} {dtype} {quantize} {shapes!r}"
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
