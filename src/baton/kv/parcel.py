"""A segment as bytes and back, so that a query can go on in another process.

A parcel is a header, which is plain JSON, and the segment's parts as arrays of bytes, without copies where the parts
are in memory of their own. Times cross as ages, because clocks of two processes have nothing in common. A form crosses
as its text, and is compiled where it arrives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baton.core.constraint import Constraint, OutputFormat
from baton.core.errors import BatonError
from baton.core.origin import Origin
from baton.core.query import Query
from baton.core.sampling import SamplingParams
from baton.kv.port import OffloadedParts
from baton.kv.segment import KVSegment

VERSION = 1
Compile = Callable[[OutputFormat], Constraint]

# Times of a query on its engine's clock.
_TIMES = ("arrived", "deadline", "start_by", "end_by")
# Fields that are the same value in JSON, and what they are.
_PLAIN: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "user", "sibling_of"), (str,)),
    **dict.fromkeys(("seed", "limit_tokens", "priority"), (int,)),
    "prefix_space": (str, NoneType),
}
_MOST_TOKEN = 2**31
_NUMBERS = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)
}


class BadParcel(BatonError):
    """A parcel is of another version, or is none."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A segment that travels.

    Attributes:
        header: Plain JSON: `version`, `query`, `tokens`, `cached`, `computed`, `stamp`, and each part's type and shape.
        parts: The bytes of each part, `uint8` and one-dimensional.
    """

    header: Mapping[str, Any]
    parts: Sequence[np.ndarray[Any, np.dtype[np.uint8]]] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.nbytes for part in self.parts)

    def without_parts(self) -> Parcel:
        """Returns a parcel of which all is computed again."""
        return Parcel({**self.header, "cached": 0, "parts": []})


def pack(segment: KVSegment, now: float) -> Parcel:
    """Returns a parcel of a segment, at this time of the clock of its engine.

    Its bytes are views of the segment's parts: the segment must not be released while they are used. Parts on another
    device, or in memory that `release` gives back, are copied to the host, which waits for them.
    """
    lent = isinstance(segment.parts, OffloadedParts) or segment.location is not None
    parts = [_on_the_host(part, copy=lent) for part in segment.parts]
    header = {
        "version": VERSION,
        "query": _written(segment.query, now),
        "tokens": list(segment.tokens),
        "cached": segment.cached,
        "computed": segment.computed,
        "stamp": segment.stamp,
        "parts": [[str(part.dtype).removeprefix("torch."), list(part.shape)] for part in parts],
    }
    return Parcel(header, [part.reshape(-1).view(torch.uint8).numpy() for part in parts])


def unpack(parcel: Parcel, now: float, compile: Compile) -> KVSegment:
    """Returns the segment of a parcel, at this time of the clock of the engine that it comes to.

    Its parts are views of the parcel's bytes. `compile` makes the constraint of a query's form, and may raise what it
    does. Raises BadParcel for another version and for what is no parcel.
    """
    header: Any = parcel.header
    version = header.get("version") if isinstance(header, Mapping) else None
    if version != VERSION:
        raise BadParcel(f"a parcel of version {version!r}; this is version {VERSION}")
    try:
        segment = _segment(parcel, now)
    except Exception as error:  # what was damaged is of any type, and in any place
        raise BadParcel(f"this is no parcel: {type(error).__name__}") from error
    query, tokens = segment.query, segment.tokens
    whole = tuple(tokens[: len(query.prompt)]) == query.prompt and 0 <= segment.cached < len(tokens)
    if not whole or not 0 <= segment.generated < query.limit_tokens or bool(segment.parts) != bool(segment.cached):
        raise BadParcel("this is no parcel: its tokens do not fit its query")
    if query.form is not None:
        segment.query = dataclasses.replace(query, constraint=compile(query.form))
    return segment


def _segment(parcel: Parcel, now: float) -> KVSegment:
    header = parcel.header
    query, tokens = _read(header["query"], now), _tokens(header["tokens"])
    parts = [_part(data, *about) for data, about in zip(parcel.parts, header["parts"], strict=True)]
    cached, computed = (_typed(header[name], int) for name in ("cached", "computed"))
    if not 0 <= computed <= len(tokens):
        raise ValueError("more is computed than there is")
    return KVSegment(query, tokens, _typed(header["stamp"], str), cached, computed, parts)


def resumed(query: Query, told: Sequence[int], stamp: str) -> KVSegment:
    """Returns the segment of a query whose engine is gone, of the tokens that its asker was told.

    All is computed again, and counted so.
    """
    if told:
        query = dataclasses.replace(query, start_by=None)
    tokens = [*query.prompt, *told]
    return KVSegment(query, tokens, stamp, computed=len(tokens) - 1 if told else 0)


def _on_the_host(part: Tensor, *, copy: bool) -> Tensor:
    on_host = part.detach().to("cpu").contiguous()
    return on_host.clone() if copy and on_host.data_ptr() == part.data_ptr() else on_host


def _part(data: np.ndarray[Any, Any], kind: str, shape: Sequence[int]) -> Tensor:
    if not data.size:  # of no bytes torch makes no other numbers
        return torch.empty(0, dtype=_NUMBERS[kind]).reshape(tuple(shape))
    return torch.from_numpy(data).view(_NUMBERS[kind]).reshape(tuple(shape))


def _written(query: Query, now: float) -> dict[str, Any]:
    params = {field.name: getattr(query.params, field.name) for field in dataclasses.fields(SamplingParams)}
    if query.params.logit_bias is not None:
        params["logit_bias"] = [[token, bias] for token, bias in query.params.logit_bias.items()]
    times = {name: getattr(query, name) for name in _TIMES}
    return {
        **{name: getattr(query, name) for name in _PLAIN},
        "prompt": list(query.prompt),
        "params": params,
        "seconds": {name: None if time is None else time - now for name, time in times.items()},
        "origin": dataclasses.asdict(query.origin),
        "form": None if query.form is None else dataclasses.asdict(query.form),
        "visible_special_tokens": sorted(query.visible_special_tokens),
    }


def _read(told: Mapping[str, Any], now: float) -> Query:
    params = dict(told["params"])
    if params.get("logit_bias") is not None:
        params["logit_bias"] = {int(token): float(bias) for token, bias in params["logit_bias"]}
    form = None if told["form"] is None else OutputFormat(**_texts(told["form"]))
    times: dict[str, Any] = {name: _time(told["seconds"][name], now) for name in _TIMES}
    return Query(
        **{name: _typed(told[name], *kinds) for name, kinds in _PLAIN.items()},
        prompt=tuple(_tokens(told["prompt"])),
        params=SamplingParams(**{name: _tuple(value) for name, value in params.items()}),
        arrived=times.pop("arrived") or 0.0,
        **times,
        form=form,
        origin=Origin(**_texts(told["origin"])),
        visible_special_tokens=frozenset(_tokens(told["visible_special_tokens"])),
    )


def _typed(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"{value!r} is not of {kinds}")
    return value


def _texts(told: Mapping[str, Any]) -> dict[str, str]:
    return {name: _typed(value, str) for name, value in told.items()}


def _tokens(told: Sequence[Any]) -> list[int]:
    tokens = [_typed(token, int) for token in _typed(told, list)]
    if tokens and not 0 <= min(tokens) <= max(tokens) < _MOST_TOKEN:
        raise ValueError("no tokens")
    return tokens


def _time(seconds: float | None, now: float) -> float | None:
    if seconds is not None and not math.isfinite(seconds):
        raise ValueError("no time")
    return None if seconds is None else now + seconds


def _tuple(value: Any) -> Any:
    """JSON has lists where parameters have tuples."""
    return tuple(value) if isinstance(value, list) else value
