"""The verbs `baton load` and `baton compare`, which need no engine; and the workload that options ask for."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from tqdm import tqdm

from baton.bench.compare import differences, losses, read_report, verdicts
from baton.bench.drive import Mode, Response
from baton.bench.figures import Figures, Goal, figures
from baton.bench.over_http import LoadError, Measured, Target, drive_over_http, find_target, slots_of, vocabulary_of
from baton.bench.table import IDLE, NOT_OVER_HTTP, report, runs_before, table_of, verdict_table
from baton.bench.workload import Workload, make_workload, read_trace_of_queries
from baton.core.clock import monotonic
from baton.core.errors import CheckFailed, SettingError
from baton.core.events import Slots
from baton.core.files import check_writable, write_text

_COMMON = ("the", "of", "and", "to", "in", "is", "you", "that", "he", "was", "for", "on", "are", "with", "as", "his")


_DRAWN = ("prompt", "answer", "arrivals", "shared_prefix", "prefixes", "turns")


def workload_of(asked: dict[str, Any]) -> Workload:
    """The workload that options ask for. Raises SettingError, also for options that a trace would ignore."""
    drawn = {name: asked[name] for name in _DRAWN if asked[name] is not None}
    if asked["mode"] != "timed" and asked["factor"] != 1:
        raise SettingError(f"--factor {asked['factor']:g} is of --mode timed, not of {asked['mode']}", param="factor")
    if asked["workload"] and drawn:
        name = next(iter(drawn)).replace("_", "-")
        raise SettingError(f"--{name} is for queries that are drawn, and --workload says what they are", param=name)
    if asked["workload"]:
        workload = read_trace_of_queries(asked["workload"]).first(asked["queries"])
    else:
        workload = make_workload(asked["queries"], **drawn, seed=asked["seed"] or 0)
    return workload.clipped(asked["max_prompt"] or 2**31, asked["max_answer"] or 2**31).faster(asked["factor"])


def run_load(url: str, asked: dict[str, Any]) -> None:
    """Measures a server and shows the figures. Exits with status 1 if every query failed."""
    extra = {"ignore_eos": True, **dict(map(_field, asked["fields"]))}
    workload = workload_of(asked)
    if (asked["turns"] or 1) > 1 and not asked["text"]:
        message = "--turns needs --text: servers answer with text, and what was said before is in the next prompt"
        raise SettingError(message, param="turns")
    if asked["append"] and not asked["json_file"]:
        raise SettingError("--append adds to a --json file, and none is named", param="append")
    if asked["json_file"]:
        check_writable("--json", asked["json_file"], param="json")
    target = find_target(url, asked["api_key"], asked["model_name"], extra)
    about = {"model": target.model, "url": target.url, "workload": workload.about}
    runs = runs_before(asked["json_file"], about, ["load"]).get("load", []) if asked["append"] else []
    console = Console(highlight=False)
    lags, responses = [], []
    with tqdm(
        total=len(workload.asks) * asked["repeat"], unit="query", file=sys.stderr, disable=not sys.stderr.isatty()
    ) as bar:
        for _ in range(asked["repeat"]):
            measured, figures_of_run = _load_once(target, workload, asked, len(runs), bar.update)
            runs.append(figures_of_run)
            lags.append(measured.lag)
            responses += measured.run.responses
    _say(console, f"{workload.about}\n{target.model} at {target.url}, {len(runs)} runs")
    idle = any(sum(one.slots.values()) for one in runs)
    console.print(table_of({target.model: runs}, skip=NOT_OVER_HTTP | (set() if idle else IDLE)))
    late, lag = max(one.late for one in runs) * 1000, max(lags) * 1000
    cpu = f"{measured.cpu_seconds:.2f} s of its CPU in the last run's {measured.run.seconds:.2f}"
    _say(console, f"this client: queries asked at most {late:.0f} ms late, its event loop {lag:.1f} ms (p99), {cpu}")
    if asked["json_file"]:
        itself = {"lag": max(lags), "client_cpu_seconds": measured.cpu_seconds}
        whole = report({**about, **itself}, {"load": runs}, {"load": asked})
        write_text("--json", asked["json_file"], json.dumps(whole), param="json")
    _tell_what_is_odd(console, responses)
    failed = [one.error for one in responses if one.error]
    if failed:
        _say(console, f"{len(failed)} queries failed, the first with: {failed[0]}")
    if len(failed) == len(responses):
        raise LoadError("every query failed")


def _load_once(
    target: Target, workload: Workload, asked: dict[str, Any], number: int, on_done: Callable[[], None]
) -> tuple[Measured, Figures]:
    """Run `number` of a report. Its prompts are its own, so that no server has them cached from the run before."""
    prompts: list[Any] = workload.prompts(vocabulary_of(target), asked["seed"] + 1_000_003 * number)
    if asked["text"]:
        prompts = [_words(prompt) for prompt in prompts]
    before, mode = slots_of(target), Mode(asked["mode"])
    measured = drive_over_http(
        target, workload, prompts, monotonic, mode=mode, at_once=asked["at_once"], on_done=on_done
    )
    after, goal = slots_of(target), Goal(asked["goal_first"], asked["goal_token"], asked["goal_gap"])
    slots = Slots(**{kind: after[kind] - before.get(kind, 0) for kind in after})
    return measured, figures(measured.run, slots, preemptions=0, kv_bytes_most=0, goal=goal, prompts=number)


def _say(console: Console, text: str) -> None:
    """Prints others' words: brackets in them are not colours, and their lines are not wrapped."""
    console.print(text, markup=False, soft_wrap=True)


def _tell_what_is_odd(console: Console, responses: Sequence[Response]) -> None:
    done = [one for one in responses if one.error is None]
    silent = sum(not one.exact_count for one in done)
    if silent:
        _say(console, f"{silent} answers came without usage: their pieces of text are counted as tokens")
    pieces, tokens = sum(len(one.times) for one in done), sum(one.count for one in done)
    if pieces < 0.95 * tokens:
        _say(console, f"{tokens} tokens came in {pieces} pieces: gaps are between pieces, several tokens each")


def run_compare(first: str, second: str, *, tolerance: float, as_json: bool) -> None:
    """Shows the verdicts. Exits with status 1 if B is worse or gives other answers."""
    a, b = read_report(first), read_report(second)
    changed, speeds = [*differences(a, b), *losses(a, b)], verdicts(a, b, tolerance=tolerance)
    if as_json:
        print(
            json.dumps(
                {"differences": list(map(dataclasses.asdict, changed)), "speeds": list(map(dataclasses.asdict, speeds))}
            )
        )
    else:
        console = Console(highlight=False)
        console.print(verdict_table(speeds))
    worse = [str(one) for one in speeds if one.word == "worse"]
    worse += [f"{one.contender}: {one.what}" for one in changed]
    if worse:
        raise CheckFailed(f"B is worse. {'; '.join(worse)}")


def _field(spec: str) -> tuple[str, Any]:
    name, equals, value = spec.partition("=")
    try:
        return name, json.loads(value) if equals else True
    except ValueError:
        raise SettingError(f"--field {spec}: must be NAME=JSON", param="field") from None


def _words(tokens: Sequence[int]) -> str:
    """A text of about so many tokens, of common words that are one token for most tokenizers."""
    return " ".join(_COMMON[token % len(_COMMON)] for token in tokens)
