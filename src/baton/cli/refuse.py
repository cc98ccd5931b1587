"""Refuses at once, before torch is imported, settings, files and folders that no engine could use."""

from __future__ import annotations

from typing import Any

from baton import builtin
from baton.core.config import Config, check_loading, check_shaping, named_models, threads
from baton.core.errors import SettingError
from baton.core.files import OWNER_ONLY, check_writable, make_folder
from baton.core.host import cores
from baton.policy.port import traits
from baton.policy.table import policy_named

Options = dict[str, Any]


def refuse(config: Config) -> None:
    """Raises SettingError or LoadError for what an engine with these settings would refuse."""
    refuse_settings(config)
    if config.trace is not None:
        check_writable("--trace", config.trace, param="trace")
    if config.handover is not None:
        make_folder("--handover", config.handover, param="handover", mode=OWNER_ONLY)
    sources = [config.model] if config.model is not None else [*named_models(config).values()]
    for source in sources:
        from baton.loader.hub import check_found  # takes half a second that other verbs need not wait

        if source != builtin.NAME:
            check_found(source)


def refuse_settings(config: Config) -> None:
    """Raises SettingError for values that no engine could use, whatever the machine's files are."""
    check_shaping(config, traits(policy_named(config.policy)))
    check_loading(config)
    threads(config, cores())


def refuse_file(name: str, asked: Options) -> None:
    """Raises SettingError if a report cannot be written to this file."""
    if asked[f"{name}_file"]:
        check_writable(f"--{name}", asked[f"{name}_file"], param=name)


def refuse_bench(config: Config, asked: Options) -> None:
    """Raises SettingError for options that the run could not honour."""
    from baton.bench import plots
    from baton.bench.commands import workload_of
    from baton.bench.table import runs_before
    from baton.measure.contenders import check_contenders, contenders

    some = contenders(asked["policies"].split(","), asked["vary"])
    check_contenders(config, some)
    workload_of({**asked, "seed": config.seed})
    if asked["accuracy"] and config.model:
        message = f"--accuracy asks the built-in model's questions, which {config.model} was not made for"
        raise SettingError(message, param="accuracy")
    if asked["append"] and not asked["json_file"]:
        raise SettingError("--append adds to a --json file, and none is named", param="append")
    if asked["in_turn"] and asked["mode"] == "timed":
        raise SettingError("--in-turn has a clock of its own: --mode timed cannot be kept", param="in_turn")
    if asked["html_file"]:
        plots.check_installed()
    for name in ("json", "html"):
        refuse_file(name, asked)
    if asked["append"]:
        runs_before(asked["json_file"], {}, [one.name for one in some])


def refuse_tune(config: Config, asked: Options) -> None:
    """Raises SettingError for formats that cannot be compared."""
    from baton.measure.format_names import variants

    if asked["formats"] is not None:
        variants(config, asked["formats"])
    elif asked["text_file"] is not None:
        raise SettingError("--text is scored in the formats of --formats, and none are named", param="text")
    refuse_file("json", asked)


def refuse_simulate(config: Config, asked: Options) -> None:
    """Raises SettingError for options that cannot be simulated."""
    from baton.bench.commands import workload_of
    from baton.bench.costmodel import read_costs
    from baton.measure.contenders import check_contenders, contenders
    from baton.measure.replicas import replicas_of

    check_contenders(config, contenders(asked["policies"].split(","), asked["vary"]))
    replicas_of(asked["engines"], by_prefix=asked["by_prefix"])
    workload_of({**asked, "seed": config.seed})
    read_costs(asked["costs"])
    refuse_file("json", asked)
