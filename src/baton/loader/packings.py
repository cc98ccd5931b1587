"""Which packed format a checkpoint is in, from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from baton.core.errors import LoadError
from baton.loader.gptq import gptq
from baton.loader.packed_format import PackedFormat

_KEPT: Mapping[str, Callable[[Mapping[str, Any]], PackedFormat | None]] = {"gptq": gptq}


def packed_format(config: Any, source: str) -> PackedFormat | None:
    """The format in which a checkpoint with this stock config is kept; None if transformers loads it.

    Raises LoadError for a variant of a format that is not kept.
    """
    said = said_of(config)
    read = _KEPT.get(str(said.get("quant_method")))
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
