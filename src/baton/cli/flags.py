"""The flags of the command line: one per setting, and flags that several verbs share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from baton.core.config import Config
from baton.core.limits import Limits, flag_of

# Settings of the server, which other verbs do not have.
_LIMITS = frozenset(known.name for known in dataclasses.fields(Limits))
_ACCESS = {"host", "port", "api_key", "api_key_file", "allowed_host", "cors_origin"}
SERVING = (
    _LIMITS
    | _ACCESS
    | {"served_model_name", "drain_timeout", "hang_timeout", "hang_exit", "max_stall_ms", "metrics_compat"}
    | {"batch_dir", "handover", "replicas", "ray_address", "replica_cpus", "replica_gpus", "losses"}
    | {"replica_handover", "prefill_replicas"}
    | {"prefix_sharing", "special_in_text", "reasoning", "models", "load_on_demand", "unload_after"}
)
# Settings that the check chooses itself.
OF_THE_BATCH = frozenset(
    {"max_batch_size", "max_model_len", "policy", "prefill_chunk", "prefix_cache", "deterministic"}
)
# Settings of the model that is loaded.
LOADING = frozenset({"dtype", "device", "quantize", "compile", "step_compiler", "threads", "trust_remote_code"})
Command = Callable[..., Any]


def settings(without: frozenset[str] = frozenset(), *, several: bool = False) -> Callable[[Command], Command]:
    """Gives a command MODEL and one flag per field of Config.

    A flag that was not given is None, so that other sources count. `several`: the command takes any number of models.
    """

    def add(command: Command) -> Command:
        # click shows the option that it gets last first; a dataclass has its base's fields first.
        for known in sorted(reversed(dataclasses.fields(Config)), key=lambda known: known.name not in _LIMITS):
            if known.name not in {"model", "models", *without}:
                command = _flag(known)(command)
                if "was" in known.metadata:
                    command = click.option(flag_of(known.metadata["was"]), hidden=True, default=None)(command)
        command = click.option("--config", "config_file", metavar="FILE.toml", help="Settings from a file.")(command)
        if several:
            return click.argument("models", nargs=-1, metavar="[MODEL]...")(command)
        return click.argument("model", required=False)(command)

    return add


def _flag(known: dataclasses.Field[Any]) -> Callable[[Command], Command]:
    flag = flag_of(known.name)
    if known.type in ("bool", "bool | None"):
        # A setting that is on by default, or only sometimes, can be turned off.
        names = flag if known.default is False else f"{flag}/--no-{flag.removeprefix('--')}"
        return click.option(names, known.name, is_flag=True, default=None, help=known.metadata["help"])
    many = known.default == ()
    shown = "" if known.default in (None, ()) else f"  [default: {known.default}]"
    choices = known.metadata.get("choices")
    metavar = "|".join(choices) if choices else _metavar(known)
    text = known.metadata["help"] + shown
    return click.option(flag, known.name, default=None, multiple=many, metavar=metavar, help=text)


class WithLimits(click.Command):
    """Shows the limits in a section of their own, after the other options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], "Limits": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                sections["Limits" if param.name in _LIMITS else "Options"].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _metavar(known: dataclasses.Field[Any]) -> str:
    if known.metadata.get("size"):
        return "SIZE"
    kinds = {int: "N", float: "SECONDS" if "Seconds" in known.metadata["help"] else "NUMBER"}
    return kinds.get(type(known.default), known.name.split("_")[-1].upper())


_WORKLOAD = (
    click.option("--workload", metavar="FILE", help="Queries of a trace: Azure or BurstGPT CSV, Mooncake JSON lines."),
    click.option("--queries", type=click.IntRange(1), default=32, show_default=True, help="How many."),
    click.option("--prompt", metavar="LENGTH", help="Without a trace: tokens.  [default: lognormal:100,0.8]"),
    click.option("--answer", metavar="LENGTH", help="Without a trace: tokens.  [default: lognormal:60,0.8]"),
    click.option("--arrivals", help="Without a trace: at-once, poisson:RATE, bursty:RATE,CV.  [default: at-once]"),
    click.option("--shared-prefix", type=click.IntRange(1), help="Tokens that prompts begin with in common."),
    click.option("--prefixes", type=click.IntRange(1), help="How many such beginnings there are.  [default: 1]"),
    click.option("--turns", type=click.IntRange(1), help="Each query is a conversation of so many.  [default: 1]"),
    click.option("--max-prompt", type=click.IntRange(1), default=None, help="Longer prompts are cut."),
    click.option("--max-answer", type=click.IntRange(1), default=None, help="Longer answers are cut."),
    click.option("--mode", type=click.Choice(["offline", "timed", "closed"]), default="offline", show_default=True),
    click.option("--factor", type=float, default=1.0, help="The workload's rate times this, with --mode timed."),
    click.option("--at-once", type=click.IntRange(1), default=8, help="Queries at a time, with --mode closed."),
)


def workload(command: Command) -> Command:
    """Gives a command the flags that say which queries are asked, and when."""
    for option in reversed(_WORKLOAD):
        command = option(command)
    return command
