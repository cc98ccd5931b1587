"""The paper's methods of batching as settings of one engine, and one run of a workload through one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.bench.drive import Mode, drive
from baton.bench.figures import Figures, figures
from baton.bench.workload import Workload
from baton.compose import start
from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.events import Event, IterationDone, Slots
from baton.loader.loaded import Loaded
from baton.measure.contenders import Contender
from baton.measure.trials import settings_of
from baton.policy.table import POLICIES

COMPLETION, ORCA, LITERAL, RAGGED = "run to completion", "Orca", "BATON, shaped as in the paper", "BATON, ragged rows"
METHODS: dict[str, dict[str, str]] = {
    COMPLETION: {"policy": "run_to_completion", "shaping": "aligned"},
    ORCA: {"policy": "orca"},
    LITERAL: {"policy": "baton", "shaping": "aligned"},
    RAGGED: {"policy": "baton"},
}
# Native steps expect each row at its own columns, so nothing is aligned.
NATIVE = {name: {"policy": set_["policy"]} for name, set_ in METHODS.items() if name != LITERAL}


@dataclass(slots=True)
class Account:
    """A sink: where a run's seconds went.

    Iterations `with_prompts` computed some of a prompt; `alone`: other iterations.
    """

    alone: list[float] = field(default_factory=list)
    alone_rows: int = 0
    with_prompts: list[float] = field(default_factory=list)
    moving: float = 0.0
    slots: Slots = field(default_factory=Slots)
    rows_most: int = 0
    kv_bytes_most: int = 0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, IterationDone) or event.kind == "none":
            return
        self.slots.add(event.slots)
        self.rows_most = max(self.rows_most, event.rows)
        self.kv_bytes_most = max(self.kv_bytes_most, event.kv_bytes_used)
        # What rows wait for while others are shaped into the batch, or out of it.
        self.moving += sum(event.stall_seconds.get(cause, 0.0) for cause in ("insert", "resize", "other"))
        if event.prefilled_tokens:
            self.with_prompts.append(event.seconds)
        else:
            self.alone.append(event.seconds)
            self.alone_rows += event.occupied

    @property
    def columns_padded(self) -> float:
        """The share of the key and value columns that attention read in vain."""
        read = self.slots.columns_needed + self.slots.columns_padding
        return self.slots.columns_padding / read if read else 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. `gaps`: for each query, the seconds between each two of its tokens."""

    figures: Figures
    account: Account
    gaps: list[list[float]]


def measured(
    loaded: Loaded, config: Config, changes: Mapping[str, str], workload: Workload, mode: Mode = Mode.OFFLINE
) -> Measured:
    """The workload through the engine with these settings changed."""
    settings = settings_of(config, loaded, Contender("paper", changes))
    prompts, account = workload.prompts(loaded.tokenizer.vocabulary, config.seed), Account()
    client = start(loaded, settings, POLICIES[settings.policy](), "paper", [account])
    try:
        run = drive(client, workload, prompts, monotonic, mode=mode)
    finally:
        client.close()
    run_figures = figures(run, account.slots, preemptions=0, kv_bytes_most=account.kv_bytes_most)
    return Measured(run_figures, account, [one.gaps for one in run.responses])
