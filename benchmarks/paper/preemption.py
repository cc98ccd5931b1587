"""The paper's preemption: an urgent query takes another's row, whose keys and values are kept, or waits for one."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from baton.core.clock import monotonic
from baton.core.config import Config
from baton.loader.loaded import Loaded
from baton.measure.contenders import Contender
from baton.measure.trials import settings_of
from benchmarks.stage import Stage, prompts

LESS_URGENT = 10


@dataclass(frozen=True)
class Urgent:
    """`first`: seconds to the first token of each urgent query; `others`: to the last token of each other one."""

    first: list[float]
    others: list[float]
    tokens_per_second: float
    preemptions: int
    recomputed: int
    texts: dict[str, list[int]]


def urgent_queries(
    loaded: Loaded, config: Config, changes: Mapping[str, str], *, less: int, urgent: int, seed: int
) -> Urgent:
    """`less` long answers at once, more than there are rows; and an urgent query of 16 tokens every 30 iterations."""
    settings = settings_of(config, loaded, Contender("paper", changes))
    dice = random.Random(seed)
    texts = prompts(loaded, [64] * (less + urgent), dice)
    later = deque((30 * (at + 1), f"urgent {at}", text) for at, text in enumerate(texts[less:]))
    stage = Stage(loaded, settings, settings.policy)
    honoured = settings.policy == "priority"
    began = monotonic()
    for at, text in enumerate(texts[:less]):
        stage.ask(f"less {at}", text, dice.randint(96, 192), priority=LESS_URGENT if honoured else 0)
    for turn in itertools.count():
        while later and later[0][0] <= turn:
            _, name, text = later.popleft()
            stage.ask(name, text, 16)
        if stage.engine.busy:
            stage.turn()
        elif not later:
            break
    seconds = monotonic() - began
    answers = stage.answers
    return Urgent(
        first=[one.first for name, one in answers.items() if name.startswith("urgent")],
        others=[one.whole for name, one in answers.items() if name.startswith("less")],
        tokens_per_second=sum(len(one.tokens) for one in answers.values()) / seconds,
        preemptions=sum(one.usage.preemptions for one in answers.values() if one.usage),
        recomputed=stage.engine.totals.slots.recomputed,
        texts={name: list(one.tokens) for name, one in answers.items()},
    )
