"""Which packed format a checkpoint is in, from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from baton.core.errors import LoadError
from baton.loader.awq import awq
from baton.loader.compressed import compressed
from baton.loader.float8 import fp8
from baton.loader.gguf_blocks import METHOD, gguf
from baton.loader.gptq import gptq
from baton.loader.mxfp4 import mxfp4
from baton.loader.packed_format import UNPACKED, PackedFormat

KEPT: Mapping[str, Callable[[Mapping[str, Any]], PackedFormat | None]] = {
    "gptq": gptq,
    "awq": awq,
    "compressed-tensors": compressed,
    "fp8": fp8,
    "fbgemm_fp8": fp8,
    "mxfp4": mxfp4,
    METHOD: gguf,
}
"""What makes a format of a quantization_config, by its quant_method."""

# Forms of which no exact copy can be kept, or whose own packages are made for GPUs or make full weights of them.
NOT_KEPT = frozenset(
    [
        "bitsandbytes",
        "torchao",
        "hqq",
        "quanto",
        "eetq",
        "higgs",
        "aqlm",
        "vptq",
        "spqr",
        "quark",
        "fouroversix",
        "fp_quant",
        "bitnet",
        "nvfp4",
        "mxfp8",
        "auto-round",
        "metal",
        "sinq",
        "gemma",
    ]
)


def packed_format(config: Any, source: str) -> PackedFormat | None:
    """The format in which a checkpoint with this stock config is kept; None if transformers loads it.

    Raises LoadError for a format, or a variant of one, that cannot be kept.
    """
    said = said_of(config)
    method = str(
        said.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in said or "load_in_8bit" in said else "")
    )
    if method in NOT_KEPT:
        raise LoadError(
            f"{source} is quantized by {method}, whose form is not kept packed on CPUs: take one of"
            f" {', '.join(name for name in KEPT if name != METHOD)}, GGUF, {UNPACKED}"
        )
    read = KEPT.get(method)
    if read is None:
        return None
    try:
        return read(said)
    except LoadError as error:
        raise LoadError(f"{source} {error.message}") from error


def said_of(config: Any) -> dict[str, Any]:
    """A stock config's quantization_config, of the model or of its text part; empty if it has none."""
    for part in (config, config.get_text_config()):
        said = getattr(part, "quantization_config", None)
        if said:
            return dict(said if isinstance(said, Mapping) else said.to_dict())
    return {}
