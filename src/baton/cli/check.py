"""`baton check`: every way of running a model, compared with the model alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from baton.cli.show import errors, tell_phase
from baton.compose import model_name, open_model
from baton.core.config import Config
from baton.core.errors import CheckFailed
from baton.loader.oracle import Oracle
from baton.measure.check import Outcome, check


def run_check(config: Config, *, tokens: int, longest: int | None, as_json: bool) -> None:
    """Compares every way of running a model with the model alone. Exits with status 1 if they differ."""
    name, oracle = model_name(config), Oracle(answer=tokens, longest=longest)
    if config.max_model_len.isdecimal():
        oracle.context = int(config.max_model_len)
    on_phase = (lambda phase, seconds: None) if as_json else tell_phase
    loaded = open_model(config, on_phase=on_phase, before=oracle)
    if not as_json:
        errors.print(f"  {name}, {loaded.dtype} on {loaded.device}: {loaded.description}")
    done: list[Outcome] = []
    with Live(_verdicts(done), console=errors, transient=True) if not as_json else contextlib.nullcontext() as live:
        for outcome in check(loaded, oracle, config):
            done.append(outcome)
            if live is not None:
                live.update(_verdicts(done))
    failed = [outcome.name for outcome in done if not outcome.passed]
    if as_json:
        facts = [{**dataclasses.asdict(outcome), "passed": outcome.passed} for outcome in done]
        about = {"model": name, "dtype": str(loaded.dtype).removeprefix("torch."), "device": str(loaded.device)}
        run = {"way": loaded.forward.backend.value, "whole_prompts": loaded.forward.whole_prompts}
        print(json.dumps({**about, **run, "notes": oracle.notes, "passed": not failed, "scenarios": facts}))
    else:
        console = Console(highlight=False)
        console.print(_verdicts(done))
        for note in oracle.notes:
            console.print(f"note: {note}")
    if failed:
        raise CheckFailed(f"{name} does not give the same as alone: {', '.join(failed)}")


def _verdicts(done: Sequence[Outcome]) -> Table:
    table = Table(box=None)
    table.add_column("what was done", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("result")
    for outcome in done:
        if outcome.skipped is not None:
            table.add_row(outcome.what, "", "", f"[yellow]not checked[/yellow]: {outcome.skipped}")
            continue
        verdict = "[green]same as alone[/green]" if outcome.passed else "[red]differs[/red]"
        if outcome.diverged is not None:
            verdict += " from token {1} of query {0} on".format(*outcome.diverged)
        ties = f"{outcome.ties} near tie{'s' * (outcome.ties > 1)}"
        notes = [ties] * bool(outcome.ties) + [outcome.evidence] * bool(outcome.evidence)
        verdict += f" ({', '.join(notes)})" if notes else ""
        table.add_row(outcome.what, str(outcome.tokens), f"{outcome.difference:.1e}", verdict)
    return table
