"""`baton check --perplexity`: how much of a text's predictability a format of the weights costs."""

from __future__ import annotations

import dataclasses
import gc
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from baton import builtin
from baton.cli.show import errors, tell_phase
from baton.compose import model_name, open_model
from baton.core.config import Config
from baton.core.errors import SettingError
from baton.loader.scores import Alone, tokenizer_of
from baton.measure.perplexity import Compared, compared, served

PLAIN = "none"


def run_perplexity(config: Config, file: Path, *, window: int, as_json: bool) -> None:
    """Scores a text with the model alone, in its own format, and with the engine. Raises SettingError for the file."""
    name, text = model_name(config), _read(file)
    tokenize = tokenizer_of(config.model or str(builtin.path()), code=config.trust_remote_code)
    # A model that loads in rounded weights is read twice: only in its own format it is the model alone.
    rounded = config.quantize != PLAIN
    on_phase = (lambda phase, seconds: None) if as_json else tell_phase
    with tqdm(unit="token", disable=as_json or None, leave=False) as bar:
        alone = Alone(text, window, tokenize, on_begin=lambda count: bar.reset(2 * count), tell=bar.update)
        if rounded:
            open_model(dataclasses.replace(config, quantize=PLAIN, compile=False), on_phase=on_phase, before=alone)
            gc.collect()
        loaded = open_model(config, on_phase=on_phase, before=None if rounded else alone)
        if not as_json:
            errors.print(f"  {name}, {loaded.dtype} on {loaded.device}: {loaded.description}")
        result = compared(alone.scores, served(loaded, config, alone.windows, bar.update))
    dtype = str(loaded.dtype).removeprefix("torch.")
    if as_json:
        about = {"model": name, "dtype": dtype, "quantize": config.quantize, "file": file.name}
        print(json.dumps({**about, "windows": len(alone.windows), **dataclasses.asdict(result)}))
    else:
        console = Console(highlight=False)
        console.print(_table(result, dtype, config.quantize))
        longest = len(alone.windows[0])
        console.print(f"{result.tokens:,} tokens in {len(alone.windows)} windows of up to {longest}, each by itself")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{file} cannot be read: {error.strerror}", param="perplexity") from None
    except UnicodeDecodeError:
        raise SettingError(f"{file} is no text in UTF-8", param="perplexity") from None


def _table(result: Compared, dtype: str, quantize: str) -> Table:
    table = Table(box=None)
    table.add_column("weights", no_wrap=True)
    table.add_column("perplexity", justify="right", no_wrap=True)
    table.add_column("of the first", justify="right", no_wrap=True)
    table.add_column("same best token", justify="right", no_wrap=True)
    table.add_row(f"the model alone, {dtype}", f"{result.alone:.4f}", "", "")
    how = "served" if quantize == PLAIN else f"served, {quantize}"
    ratio = f"{result.ratio:.4f} ± {result.ratio_bound:.4f}"
    table.add_row(how, f"{result.served:.4f}", ratio, f"{result.same_likeliest:.2%}")
    return table
