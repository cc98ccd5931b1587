"""The command line: `baton serve`, `baton generate`, `baton info`. Errors are one line on stderr.

torch is imported only by what a verb runs, so that `--help` and bad settings answer at once.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

import click

from baton import __version__
from baton.config import Config, load_config
from baton.errors import BatonError, RequestError, SettingError
from baton.query import SamplingParams

# Settings of the server, which other verbs do not have.
_SERVING = frozenset({"host", "port", "api_key", "served_model_name", "drain_timeout", "max_waiting", "max_stall_ms"})
# Settings that the check chooses by itself.
_OF_THE_BATCH = frozenset(
    {"max_batch_size", "max_model_len", "policy", "prefill_chunk", "prefix_cache", "deterministic"}
)
_Command = Callable[..., Any]
# What click raises from 8.2 on where no verb is given; its message is the help.
_NO_VERB: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


def main() -> NoReturn:
    """The `baton` command: exit status 2 for bad settings, 1 for a failure."""
    try:
        cli(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as error:
        if isinstance(error, _NO_VERB):
            click.echo(error.format_message(), err=True)
            sys.exit(2)
        _fail(error.format_message(), 2)
    except BatonError as error:
        _fail(error.message, getattr(error, "exit_status", 1))
    except BrokenPipeError:
        sys.exit(1)
    sys.exit(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="baton")
def cli() -> None:
    """Runs stock Hugging Face models through one running batch that is re-batched at every iteration."""


def _settings(without: frozenset[str] = frozenset()) -> Callable[[_Command], _Command]:
    """Gives a command MODEL and one flag per field of Config; what was not given stays None, so that others hold."""

    def add(command: _Command) -> _Command:
        for known in reversed(dataclasses.fields(Config)):
            if known.name not in {"model", *without}:
                command = _flag(known)(command)
        command = click.option("--config", "config_file", metavar="FILE.toml", help="Settings from a file.")(command)
        return click.argument("model", required=False)(command)

    return add


def _flag(known: dataclasses.Field[Any]) -> Callable[[_Command], _Command]:
    flag = f"--{known.name.replace('_', '-')}"
    if isinstance(known.default, bool):
        # What is on by itself can be turned off.
        names = f"{flag}/--no-{flag.removeprefix('--')}" if known.default else flag
        return click.option(names, known.name, is_flag=True, default=None, help=known.metadata["help"])
    shown = "" if known.default is None else f"  [default: {known.default}]"
    choices = known.metadata.get("choices")
    metavar = "|".join(choices) if choices else known.name.split("_")[-1].upper()
    return click.option(flag, known.name, default=None, metavar=metavar, help=known.metadata["help"] + shown)


@cli.command(epilog="Example:  baton serve Qwen/Qwen3-0.6B --max-batch-size 16 --port 8000")
@_settings()
def serve(config_file: str | None, **flags: Any) -> None:
    """Answers the OpenAI API over HTTP, with a chat page at /.

    MODEL is a hub id or a folder; left out, the built-in model is served.
    """
    began = time.perf_counter()
    config = _config(flags, config_file)
    from baton.commands import run_server

    run_server(config, began)


@cli.command(epilog='Example:  baton generate -p "What is 17 + 25?" -p "Is 2048 a leap year?"')
@_settings(without=_SERVING)
@click.option("-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt; may be given many times.")
@click.option("-f", "--file", "source", type=click.File("r"), help="Prompts, one a line; - is stdin.")
@click.option(
    "--chat/--no-chat", default=None, help="Prompts are questions in a chat.  [default: where the model chats]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line out.")
@click.option("--max-tokens", type=int, default=None, help="Most tokens to generate.  [default: to the context's end]")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--sampling-seed", type=int, default=None, help="The same seed gives the same text.")
@click.option("--stats", "show_stats", is_flag=True, help="What was computed, and how much of it idly, on stderr.")
def generate(
    config_file: str | None,
    prompts: tuple[str, ...],
    source: TextIO | None,
    chat: bool | None,
    as_json: bool,
    max_tokens: int | None,
    temperature: float,
    sampling_seed: int | None,
    show_stats: bool,
    **flags: Any,
) -> None:
    """Answers many prompts in one go, all of them through one running batch.

    Lines may be JSON: "text", {"prompt": ...}, {"messages": [...]} or {"prompt_token_ids": [...]}.
    """
    if flags["model"] and " " in flags["model"]:
        raise SettingError(f'"{flags["model"]}" is no model: give prompts with -p')
    config = _config(flags, config_file)
    try:
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=sampling_seed)
    except RequestError as error:
        raise SettingError(error.message) from None
    lines = [*prompts, *_lines(source, wanted=not prompts)]
    if not lines:
        raise SettingError('no prompt: give -p "...", -f FILE, or lines on stdin')
    from baton.commands import run_generate

    run_generate(config, lines, params, chat=chat, as_json=as_json, show_stats=show_stats)


@cli.command(epilog="Example:  baton check Qwen/Qwen3-0.6B --dtype bfloat16")
@_settings(without=_SERVING | _OF_THE_BATCH)
@click.option("--tokens", type=click.IntRange(2), default=16, show_default=True, help="Tokens that each query answers.")
@click.option("--longest", type=int, default=1024, show_default=True, help="Most tokens of a prompt.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(config_file: str | None, tokens: int, longest: int, as_json: bool, **flags: Any) -> None:
    """Proves that this model gives in any batch what it gives alone, on this machine and in this dtype.

    Compares tokens and logits with stock generate; exit status 1 where they differ.
    """
    config = _config(flags, config_file)
    from baton.commands import run_check

    run_check(config, tokens=tokens, longest=longest, as_json=as_json)


@cli.command(epilog="Example:  baton info Qwen/Qwen3-0.6B")
@click.argument("model", required=False)
@click.option("--dtype", default=None, metavar="DTYPE", help="As if the model were loaded so.  [default: as saved]")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run Python code that comes with the model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(as_json: bool, **flags: Any) -> None:
    """Shows a model's shapes, bytes per token and what fits in this machine's memory. Reads no weights."""
    config = _config(flags, None)
    from baton.commands import run_info

    run_info(config, as_json)


def _config(flags: dict[str, Any], config_file: str | None) -> Config:
    config = load_config(flags, file=config_file)
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpcore", "huggingface_hub", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return config


def _lines(source: TextIO | None, *, wanted: bool) -> list[str]:
    if source is None and (not wanted or sys.stdin.isatty()):
        return []
    return [line.strip() for line in source or sys.stdin if line.strip()]


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"baton: {' '.join(message.split())}", err=True)
    sys.exit(status)
