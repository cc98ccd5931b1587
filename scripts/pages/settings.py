"""The page docs/settings.md: every setting of `Config` but the limits, which docs/server.md has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from baton.core.config import Config
from baton.core.config_sources import ENVIRONMENT_PREFIX
from baton.core.limits import Limits, flag_of

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

_HEAD = f"""\
# Settings

Each setting is a flag of `baton serve`, a variable, and a key of the file that `--config FILE.toml` names:
`--max-batch-size 8`, `{ENVIRONMENT_PREFIX}MAX_BATCH_SIZE=8`, `max_batch_size = 8`. A flag wins over a variable, and a
variable over the file. `LLM` and `AsyncLLM` take the same names as keyword arguments. An unknown setting or a wrong
value is refused by name. [Limits](server.md#limits) are settings, too. This page is made from
`src/baton/core/config.py` by `scripts/docs`.

| setting | by itself | choices | |
| --- | --- | --- | --- |
"""


def text(_page: str) -> str:
    limits = {known.name for known in dataclasses.fields(Limits)}
    rows = [
        f"| `{known.name if known.name == 'model' else flag_of(known.name)}` | {_shown(known.default)} "
        f"| {', '.join(f'`{choice}`' for choice in known.metadata.get('choices', ()))} "
        f"| {known.metadata['help'].replace('|', '/')} |"
        for known in dataclasses.fields(Config)
        if known.name not in limits
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _shown(default: object) -> str:
    if default in (None, ()):
        return ""
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else f"`{default}`"
