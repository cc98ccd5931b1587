"""The lengths that a model's config names, at which its computation may change: windows, chunks, original contexts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# Words in names whose numbers are a width, a count or an index, and not a length.
_NO_LENGTHS = frozenset(
    """
    alpha base beams beta channels clip conv d dim dims dt embd embed embedding expand expert experts factor
    ffn group groups head heads hidden id ids image inner intermediate kernel layer layers logits lora
    mel mlp multiplier n norm num patch rank scalar seed softcap softcapping state states tensor theta
    token tokens vision vocab vocabulary width
    """.split()  # noqa: SIM905
)


def lengths_of(config: Any, *, above: int, below: int) -> dict[int, str]:
    """Returns every whole number between the two bounds that a text config names, unless it is a dimension.

    Sorted by size, each with the first name that has it.
    """
    length_names: dict[int, str] = {}
    for name, number in _numbers("", config.to_dict()):
        if above < number < below and not _NO_LENGTHS & set(re.split(r"[^a-z0-9]+", name.lower())):
            length_names.setdefault(number, name)
    return dict(sorted(length_names.items()))


def _numbers(name: str, value: object) -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(str(key), inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(name, inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
        yield name, int(value)
