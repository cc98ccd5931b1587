"""Checks that a checkpoint has all of a model's weights and no others; anything else is refused by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.loader.checkpoint import FLOATS, Stored, few
from baton.loader.folder import CONFIG, ORIGINAL
from baton.loader.kind import of_text

log = logging.getLogger("baton.model")

# Prefixes that wrappers add to the names of tensors.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "a wrapper for checkpointing",
    "base_layer.": "peft",
    "module.": "a wrapper for training in parallel",
}
# Harmless leftovers: tables and masks that models compute themselves today.
_MADE_ANEW = re.compile(r"(rotary_emb\.|inv_freq$|masked_bias$|causal_mask$|position_ids$|(cos|sin)_cached$|alibi$)")
_MASK = re.compile(r"(attn|attention)\.bias$")
# For predicting further tokens; and scales of 8-bit keys and values, which are kept in the model's dtype here.
_NOT_ASKED = re.compile(r"(^|[._])(mtp|nextn)|\.(k|v|q|kv|prob|input|output)_scale$")
_HEADS = re.compile(r"(^|\.)(score|classifier|qa_outputs|classification_head|regression_head|reward_head|pooler|cls)\.")
_LAYER = re.compile(r"^(.*?\.)?(\d+)\.")


def check_numbers(tensors: Mapping[str, Stored], source: str) -> None:
    """Raises LoadError if weights are numbers that mean nothing without their scales."""
    odd = sorted(n for n, t in tensors.items() if n.endswith(".weight") and t.dtype not in FLOATS and len(t.shape) > 1)
    if odd:
        kind = tensors[odd[0]].dtype
        raise LoadError(
            f"{source}: {few(odd)} hold {kind} numbers, and {CONFIG} has no quantization_config: {ORIGINAL}"
        )


def check_whole(model: PreTrainedModel, info: Mapping[str, Any], tensors: Mapping[str, Stored], source: str) -> None:
    kind = type(model).__name__
    other = [
        f"{name} is {list(there)} and should be {list(here)}" for name, there, here in sorted(info["mismatched_keys"])
    ]
    if other:
        raise LoadError(f"{source}: shapes of {len(other)} tensors do not fit {CONFIG}: {few(other, 2)}")
    if info["error_msgs"]:
        raise LoadError(
            f"{source}: its weights do not fit {kind}: {' '.join(str(info['error_msgs'][0]).split())[:300]}"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        several = "s" * (len(missing) > 1)
        why = _why_missing(model, missing, sorted(info["unexpected_keys"]), tensors)
        raise LoadError(f"{source} lacks {len(missing)} tensor{several} of {kind}, {few(missing)}{why}")


def _why_missing(
    model: PreTrainedModel, missing: Sequence[str], left: Sequence[str], tensors: Mapping[str, Stored]
) -> str:
    misnamed = _misnamed(missing, tensors)
    if misnamed:
        return misnamed
    if left:
        return f"; left over are {few(left)}: {CONFIG} does not describe these weights"
    head = model.get_output_embeddings()
    if all(getattr(head, name.rpartition(".")[2], None) is model.get_parameter(name) for name in missing):
        return ": a model without a head, as for embeddings and rewards, is not served"
    return ": download the model again, or save it whole"


def _misnamed(missing: Sequence[str], tensors: Mapping[str, Stored]) -> str:
    """Returns what all names wrongly begin with or contain; nothing if they differ otherwise."""
    for word, who in _WRAPPERS.items():
        if any(word in name for name in tensors):
            return f"; names of its tensors hold {word!r}, left by {who}: save the model itself"
    first = missing[0]
    for prefix in sorted(name.removesuffix(first) for name in tensors if name.endswith(first)):
        if all(prefix + name in tensors for name in missing):
            return f"; names of its tensors begin with {prefix!r}: save the model itself"
    return ""


def check_left_over(
    model: PreTrainedModel, config: Any, left: Sequence[str], tensors: Mapping[str, Stored], source: str
) -> None:
    """Logs tensors that have no place in the model. Raises LoadError if they show that it is another model."""
    left = [name for name in left if not _harmless(name, tensors.get(name))]
    text = config.get_text_config()
    layers = int(getattr(text, "num_hidden_layers", 0) or 0)
    ahead = range(layers, layers + int(getattr(text, "num_nextn_predict_layers", 0) or 0))
    own = {match[1] for name in model.state_dict() if (match := _LAYER.match(name))}
    wrong = []
    for name in left:
        if _NOT_ASKED.search(name):
            continue
        layer = _LAYER.match(name)
        if layer and int(layer[2]) in ahead:
            continue
        # Layers of images or sound are not part of the text's.
        if (layer and (not of_text(config) or layer[1] in own)) or (not layer and _HEADS.search(name)):
            wrong.append(name)
    if wrong:
        raise LoadError(
            f"{source}: {len(wrong)} tensors have no place in {type(model).__name__}, {few(wrong)}: {CONFIG} does not"
            " describe these weights"
        )
    if left:
        log.warning("%s: %d tensors are left over and not used: %s", source, len(left), few(left))


def _harmless(name: str, tensor: Stored | None) -> bool:
    mask = tensor is not None and len(tensor.shape) == 4 and _MASK.search(name) is not None
    return mask or _MADE_ANEW.search(name) is not None


def tell_of_ties(model: PreTrainedModel, source: str) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if head is None or not tied:
        return
    if getattr(head, "weight", None) is not getattr(embedding, "weight", None):
        log.warning(
            "%s: %s ties its head to its embedding, but both are there and differ: both are used", source, CONFIG
        )


def not_finite(model: PreTrainedModel) -> list[str]:
    """Names of weights that contain a NaN or an infinity."""
    return [
        name
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and not weight.is_meta and not bool(weight.isfinite().all())
    ]
