"""`baton tune --formats`: throughput and latency of one model in several formats of its weights, side by side.

Models that fit into memory together are measured in turn, pass by pass: the machine's speed changes from minute to
minute, and what is measured one after the other would be of different machines.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from baton import builtin
from baton.bench.costmodel import MeasuredCosts
from baton.compose import model_name, open_model
from baton.core.clock import monotonic
from baton.core.config import AUTO, Config
from baton.core.errors import LoadError, SettingError
from baton.core.files import write_text
from baton.core.settings import resolve
from baton.loader.facts import facts_of
from baton.loader.loaded import Loaded
from baton.loader.scores import Alone, tokenizer_of
from baton.measure.calibrate import Calibration
from baton.measure.format_names import PLAIN, Variant, variants
from baton.measure.perplexity import Compared, compared, served
from baton.measure.tune import ENOUGH_SECONDS, LEAST_PASSES, MOST_PASSES, advice, choices, measured, spread_of
from baton.model.device import free_bytes
from baton.native.forward import NativeForward

WINDOW = 512
_LOADING = 1.25
"""Of a model's weights as they were saved: what loading it once more may take."""


@dataclass(frozen=True, slots=True)
class FormatResult:
    """One format.

    `weight_bytes`: what a step reads of the weights. `one_row`: tokens a second of a query by itself, its prompt's
    computation included. `rows`, `tokens_per_second` and `seconds_per_token`: at the advised number of rows, or None if
    no number of rows meets the goal. `prompt_tokens_per_second`: of one long prompt. `spread`: how far passes were from
    their medians, as a share. `in_turn_with`: formats whose passes alternated with this one's.
    """

    name: str
    description: str
    weight_bytes: int
    one_row: float
    rows: int | None
    tokens_per_second: float | None
    seconds_per_token: float | None
    prompt_tokens_per_second: float
    spread: float
    passes: int
    in_turn_with: tuple[str, ...]
    text: Compared | None = None


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of a usual query, in tokens, and the goal of seconds between two tokens."""

    prompt_tokens: int
    answer_tokens: int
    goal: float | None


def run_formats(config: Config, asked: dict[str, Any]) -> None:
    """Measures every format, shows the table, and writes the figures. Raises SettingError for the text."""
    console = Console(highlight=False)
    if config.max_batch_size == AUTO:
        config = dataclasses.replace(config, max_batch_size=str(asked["most_rows"]))
    goal = asked["goal_ms"] and asked["goal_ms"] / 1000
    lengths = Lengths(asked["prompt_tokens"], asked["answer_tokens"], goal)
    with Progress(*_COLUMNS, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading", total=None)

        def tell(what: str) -> None:
            progress.update(task, description=what)

        alone = None if asked["text_file"] is None else _alone(config, asked["text_file"], tell)
        refused: dict[str, str] = {}
        results = list(_results(config, variants(config, asked["formats"]), lengths, alone, tell, refused))
    name = model_name(config)
    console.print(f"{name}: {len(results)} formats, {lengths.prompt_tokens} and {lengths.answer_tokens} tokens a query")
    console.print(_table(results))
    if alone is not None:
        console.print(_texts(results))
    for format, why in refused.items():
        console.print(f"{format} is refused: {why}", markup=False)
    if asked["json_file"]:
        contents = {
            "baton_formats": 1,
            "model": name,
            "asked": dataclasses.asdict(lengths),
            "formats": [dataclasses.asdict(one) for one in results],
            "refused": refused,
        }
        write_text("--json", asked["json_file"], json.dumps(contents, indent=1) + "\n", param="json")


def _alone(config: Config, file: Path, tell: Any) -> Alone:
    """The text's scores by the model alone, in its own format."""
    tell("the model alone scores the text")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"--text {file} cannot be read as text in UTF-8: {error}", param="text") from None
    tokenize = tokenizer_of(config.model or str(builtin.path()), code=config.trust_remote_code)
    alone = Alone(text, WINDOW, tokenize)
    open_model(dataclasses.replace(config, quantize=PLAIN, compile=False), before=alone)
    gc.collect()
    return alone


def _results(
    config: Config,
    some: Sequence[Variant],
    lengths: Lengths,
    alone: Alone | None,
    tell: Any,
    refused: dict[str, str],
) -> Iterator[FormatResult]:
    """`refused` gets the formats that this model cannot have, with the reason. Raises the reason if it has none."""
    waiting = list(some)
    while waiting:
        group: list[tuple[Variant, Loaded, Compared | None]] = []
        while waiting and (not group or _another_fits(group[0][1])):
            variant = waiting.pop(0)
            tell(f"loading: {variant.name}")
            try:
                loaded = open_model(variant.of(config))
            except (LoadError, SettingError) as error:
                refused[variant.name] = error.message
                if len(refused) == len(some):
                    raise
                continue
            text = None
            if alone is not None:
                tell(f"the text in {variant.name}")
                text = compared(alone.scores, served(loaded, variant.of(config), alone.windows))
            group.append((variant, loaded, text))
            gc.collect()
        if group:
            yield from _measured(config, group, lengths, tell)


def _another_fits(loaded: Loaded) -> bool:
    """Whether the same model may be loaded once more beside what is there."""
    return free_bytes(loaded.device) > _LOADING * loaded.parameters * max(loaded.dtype.itemsize, 2)


def _measured(
    config: Config, group: Sequence[tuple[Variant, Loaded, Compared | None]], lengths: Lengths, tell: Any
) -> Iterator[FormatResult]:
    settings = [resolve(variant.of(config), facts_of(loaded)) for variant, loaded, _ in group]
    calibrations = [Calibration(loaded, one) for (_, loaded, _), one in zip(group, settings, strict=True)]
    began, passes = monotonic(), 0
    while passes < LEAST_PASSES or (passes < MOST_PASSES and monotonic() - began < ENOUGH_SECONDS * len(calibrations)):
        for (variant, _, _), calibration in zip(group, calibrations, strict=True):
            tell(f"pass {passes + 1}: {variant.name}")
            calibration.measure()
        passes += 1
    names = [variant.name for variant, _, _ in group]
    for (variant, loaded, text), one, calibration in zip(group, settings, calibrations, strict=True):
        costs = calibration.costs()
        spread = spread_of(list(measured(calibration.passes)))
        some = choices(costs, one.max_rows, lengths.prompt_tokens, lengths.answer_tokens, spread)
        best = advice(some, lengths.goal)
        yield FormatResult(
            name=variant.name,
            description=f"{loaded.dtype} on {loaded.device}; {loaded.description}",
            weight_bytes=_weight_bytes(loaded),
            one_row=some[0].tokens_per_second,
            rows=None if best is None else best.rows,
            tokens_per_second=None if best is None else best.tokens_per_second,
            seconds_per_token=None if best is None else best.per_token,
            prompt_tokens_per_second=_prompt_rate(costs),
            spread=spread,
            passes=passes,
            in_turn_with=tuple(name for name in names if name != variant.name),
            text=text,
        )


def _weight_bytes(loaded: Loaded) -> int:
    """What a step reads of the weights."""
    if isinstance(loaded.forward, NativeForward):
        return loaded.forward.program.weight_bytes
    return sum(one.numel() * one.element_size() for one in loaded.model.parameters())


def _prompt_rate(costs: MeasuredCosts) -> float:
    size = costs.fill[-1][0]
    return size / max(costs.chunk(size, 0), 1e-9)


_COLUMNS = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())


def _table(results: Sequence[FormatResult]) -> Table:
    table = _columns("weights", "MiB", "tokens/s, 1 row", "rows", "tokens/s", "ms a token", "of a prompt")
    for one in results:
        cells = ["no number meets the goal", "", ""]
        if one.rows is not None and one.tokens_per_second is not None and one.seconds_per_token is not None:
            cells = [str(one.rows), f"{one.tokens_per_second:,.0f}", f"{1000 * one.seconds_per_token:.1f}"]
        first = [one.name, f"{one.weight_bytes / 2**20:,.0f}", f"{one.one_row:,.1f}"]
        table.add_row(*first, *cells, f"{one.prompt_tokens_per_second:,.0f}")
    return table


def _texts(results: Sequence[FormatResult]) -> Table:
    table = _columns("weights", "perplexity", "of the model alone", "same best token")
    for name, text in ((one.name, one.text) for one in results if one.text is not None):
        ratio = f"{text.ratio:.4f} ± {text.ratio_bound:.4f}"
        table.add_row(name, f"{text.served:.4f}", ratio, f"{text.same_likeliest:.2%}")
    return table


def _columns(first: str, *others: str) -> Table:
    table = Table(box=None)
    table.add_column(first, no_wrap=True)
    for title in others:
        table.add_column(title, justify="right")
    return table
