"""Which formats `baton tune --formats` compares, by name. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from baton.core.config import AUTO, DTYPES, QUANTIZE, QUANTIZED_NATIVELY, Config
from baton.core.errors import SettingError

PLAIN = "none"
ALL = "all"
NUMBER_FORMATS = tuple(name for name in DTYPES if name != AUTO)


@dataclass(frozen=True, slots=True)
class Variant:
    """A format's name, and the settings that ask for it."""

    name: str
    changes: Mapping[str, str]

    def of(self, config: Config) -> Config:
        return dataclasses.replace(config, **self.changes)  # type: ignore[arg-type]


def variants(config: Config, asked: str) -> list[Variant]:
    """The formats of a list such as "none,bfloat16,int4", or "all": as saved, and what CPUs pack. Raises SettingError.

    A number format takes the place of --dtype, and the others that of --quantize.
    """
    if config.quantize != PLAIN:
        raise SettingError(f"--formats compares formats: leave out --quantize {config.quantize}", param="formats")
    names = [PLAIN, *QUANTIZED_NATIVELY] if asked == ALL else [name.strip() for name in asked.split(",")]
    for at, name in enumerate(names):
        if name not in (*QUANTIZE, *NUMBER_FORMATS):
            known = ", ".join((*QUANTIZE, *NUMBER_FORMATS))
            raise SettingError(f"--formats {name}: there is {known}, or all", param="formats")
        if name in names[:at]:
            raise SettingError(f"--formats names {name} twice", param="formats")
        if name in NUMBER_FORMATS and config.dtype != AUTO:
            raise SettingError(f"--formats {name}: leave out --dtype {config.dtype}", param="formats")
    return [Variant(name, {"dtype": name} if name in NUMBER_FORMATS else {"quantize": name}) for name in names]
