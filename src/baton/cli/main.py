"""The command line: `baton serve`, `generate`, `chat`, `check`, `info`. Errors are one line on stderr.

torch is imported only by what a verb runs, so that `--help` and bad settings answer at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from baton import __version__
from baton.cli.flags import LOADING, OF_THE_BATCH, SERVING, WithLimits, settings, workload
from baton.cli.foreign import check_address, hint
from baton.cli.logs import start_logging
from baton.cli.refuse import refuse, refuse_bench, refuse_file, refuse_simulate
from baton.core.config import OLD_NAMES, Config, load_config
from baton.core.errors import BatonError, RequestError, SettingError
from baton.core.files import named
from baton.core.limits import Limits, flag_of, table
from baton.core.query import SamplingParams

if TYPE_CHECKING:
    from baton.chat.remote import Remote

# From click 8.2 on, what it raises if no verb is given; its message is the help.
_NO_VERB: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


def main() -> NoReturn:
    """The `baton` command: exit status 2 for bad settings, 1 for a failure."""
    try:
        cli(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as error:
        if isinstance(error, _NO_VERB):
            click.echo(error.format_message(), err=True)
            sys.exit(2)
        known = error.option_name if isinstance(error, click.NoSuchOption) else ""
        said = error.format_message()
        _fail(said.rstrip(".") + hint(sys.argv[1:], known) if known else said, 2)
    except BatonError as error:
        _fail(error.message, getattr(error, "exit_status", 1))
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except (OSError, MemoryError) as error:
        # A limit of the machine: a full disk, no more files, no more memory. The traceback is only for the debug log.
        logging.getLogger("baton").debug("it ended here", exc_info=True)
        _drop_output()
        _fail(str(error) or "there is no memory left", 1)
    sys.exit(0)


def _drop_output() -> None:
    """Drops what is left of the output, which nobody reads. Python would else try to write it at its end, and fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="baton")
def cli() -> None:
    """Runs stock Hugging Face models through one running batch that is re-batched at every iteration."""


@cli.command(cls=WithLimits, epilog="Example:  baton serve Qwen/Qwen3-0.6B --max-batch-size 16 --port 8000")
@settings(several=True)
def serve(config_file: str | None, **flags: Any) -> None:
    """Answers the OpenAI API over HTTP, with a chat page at /.

    MODEL is a hub id or a folder; left out, the built-in model is served. Several models, each a MODEL or NAME=MODEL,
    run in a process each; with --load-on-demand a model is loaded when it is asked for.
    """
    began = time.perf_counter()
    config = _config(flags, config_file)
    from baton.cli.serve import run_server

    run_server(config, began)


@cli.command(epilog='Example:  baton generate -p "What is 17 + 25?" -p "Is 2048 a leap year?"')
@settings(without=SERVING)
@click.option("-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt; may be given many times.")
@click.option("-f", "--file", "source", type=click.File("r"), help="Prompts, one a line; - is stdin.")
@click.option("--chat/--no-chat", default=None, help="Prompts are questions in a chat.  [default: if the model chats]")
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
    if any(not line.isascii() and line != line.encode(errors="replace").decode() for line in lines):
        raise SettingError("a prompt is no text in UTF-8")  # arguments and stdin may hold any bytes
    if not lines:
        raise SettingError('no prompt: give -p "...", -f FILE, or lines on stdin')
    from baton.cli.generate import run_generate

    run_generate(config, lines, params, chat=chat, as_json=as_json, show_stats=show_stats)


@cli.command(epilog="Example:  baton batch questions.jsonl -o answers.jsonl")
@click.argument("source", metavar="IN.jsonl", type=click.Path())
@settings(without=SERVING)
@click.option("-o", "--output", required=True, metavar="OUT.jsonl", type=click.Path(), help="File for the answers.")
@click.option("--server", default=None, metavar="URL", help="Ask this server, not a model in this process.")
@click.option("--api-key", default=None, metavar="KEY", help="Key of the server.  [default: $BATON_API_KEY]")
@click.option("--at-once", type=click.IntRange(1), help="Lines at a time, with --server.  [default: 16]")
def batch(
    config_file: str | None,
    source: str,
    output: str,
    server: str | None,
    api_key: str | None,
    at_once: int | None,
    **flags: Any,
) -> None:
    """Answers a file of requests in OpenAI's batch format, one request a line.

    Stopped or killed, and run again, it goes on where it was. OUT.jsonl is there once all lines are answered, in the
    order of IN.jsonl; until then what is done is in OUT.jsonl.unfinished. A line that names no seed gets one made of
    --seed and its custom_id. Exit status 1 if lines failed.
    """
    from baton.cli.batch import run_here, run_on_server

    if server is None:
        for flag, value in (("--api-key", api_key), ("--at-once", at_once)):
            if value is not None:
                raise SettingError(f"{flag} is for a server: give its address with --server")
        run_here(_config(flags, config_file), source, output)
        return
    given = [flag_of(name) for name, value in flags.items() if value is not None and name not in ("model", "seed")]
    if given or flags["model"]:
        raise SettingError(f"{(given or ['MODEL'])[0]} is for a model in this process, not for a server")
    check_address(server)
    config = _config({"seed": flags["seed"]}, config_file)
    run_on_server(config, source, output, url=server, api_key=api_key, at_once=at_once or 16)


@cli.command(epilog="Example:  baton chat http://127.0.0.1:8000 --temperature 0.7")
@settings(without=SERVING)
@click.option("--api-key", default=None, metavar="KEY", help="Key of the server.  [default: $BATON_API_KEY]")
@click.option("--model-name", default=None, metavar="NAME", help="The server's model.  [default: the first it lists]")
@click.option("--system", default=None, metavar="TEXT", help="The system message, before everything else.")
@click.option("--temperature", type=float, default=None, help="0 is greedy.  [default: 0, or what the server takes]")
@click.option("--max-tokens", type=int, default=None, help="Most tokens of an answer.")
@click.option("--sampling-seed", type=int, default=None, help="The same seed gives the same text.")
def chat(
    config_file: str | None,
    api_key: str | None,
    model_name: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    sampling_seed: int | None,
    **flags: Any,
) -> None:
    """A conversation in the terminal, with a model in this process or with a server.

    MODEL is a hub id, a folder, or the address of any server with OpenAI's chat API. Piped lines are answered one
    after the other.
    """
    from baton.chat.conversation import check, converse

    asked = {"temperature": temperature, "max_tokens": max_tokens, "seed": sampling_seed}
    sampling = {name: value for name, value in asked.items() if value is not None}
    check(sampling)
    if (flags["model"] or "").startswith(("http://", "https://")):
        given = [flag_of(name) for name, value in flags.items() if value is not None and name != "model"]
        if given:
            raise SettingError(f"{given[0]} is for a model in this process, not for a server")
        known = _config({}, config_file).api_key
        with closing(_server(flags["model"], api_key or next(iter(known), None), model_name)) as server:
            converse(server, system=system, sampling=sampling)
        return
    check_address(flags["model"] or "")
    for flag, value in (("--api-key", api_key), ("--model-name", model_name)):
        if value is not None:
            raise SettingError(f"{flag} is for a server: give its address, like http://127.0.0.1:8000")
    config = _config(flags, config_file)
    from baton.cli.chat import run_chat

    run_chat(config, system=system, sampling=sampling)


def _server(url: str, api_key: str | None, model: str | None) -> Remote:
    from baton.chat.remote import Remote, may_be_sent

    if api_key is None and may_be_sent(url):
        api_key = os.environ.get("OPENAI_API_KEY")
    return Remote(url, api_key=api_key, model=model)


@cli.command(epilog="Example:  baton check Qwen/Qwen3-0.6B --dtype bfloat16")
@settings(without=SERVING | OF_THE_BATCH - {"max_model_len"})
@click.option("--tokens", type=click.IntRange(2), default=16, show_default=True, help="Tokens that each query answers.")
@click.option(
    "--longest",
    type=click.IntRange(1),
    default=None,
    help="Most tokens of a prompt.  [default: beyond each length that the config names, as far as a budget goes]",
)
@click.option(
    "--perplexity",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Instead: how well the model predicts this text, alone and as it is served (--quantize).",
)
@click.option(
    "--window", type=click.IntRange(2), default=512, show_default=True, help="Tokens of the text that see each other."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(
    config_file: str | None,
    tokens: int,
    longest: int | None,
    perplexity: Path | None,
    window: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Proves that this model gives in any batch what it gives alone, on this machine and in this dtype.

    Compares tokens and logits with stock generate; exit status 1 where they differ.
    """
    config = _config(flags, config_file)
    if perplexity is not None:
        from baton.cli.perplexity import run_perplexity

        run_perplexity(config, perplexity, window=window, as_json=as_json)
        return
    from baton.cli.check import run_check

    run_check(config, tokens=tokens, longest=longest, as_json=as_json)


@cli.command(epilog="Example:  baton info Qwen/Qwen3-0.6B")
@click.argument("model", required=False)
@click.option("--device", default=None, metavar="DEVICE", help="Where it would run.  [default: the best there is]")
@click.option("--dtype", default=None, metavar="DTYPE", help="As if the model were loaded so.  [default: as it is run]")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run Python code that comes with the model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--limits", "limits_wanted", is_flag=True, help="The server's limits and their flags instead.")
def info(as_json: bool, limits_wanted: bool, **flags: Any) -> None:
    """Shows a model's shapes, bytes per token and what fits in this machine's memory. Reads no weights."""
    config = _config(flags, None)
    if limits_wanted:
        _print_limits(config, as_json)
        return
    from baton.cli.info import run_info

    run_info(config, as_json)


@cli.command(epilog="Example:  baton bench --workload azure.csv --queries 64 --policies orca,baton --json new.json")
@settings(without=SERVING | {"policy", "trace"})
@click.option("--policies", default="run_to_completion,orca,baton", show_default=True, help="Which to compare.")
@click.option("--vary", multiple=True, metavar="SETTING=A,B", help="Also with each of these values; may be repeated.")
@workload
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of each, alternated.")
@click.option("--goal-first", type=float, default=None, help="Goodput: most seconds to the first token.")
@click.option("--goal-token", type=float, default=None, help="Goodput: most seconds a token, on average.")
@click.option("--goal-gap", type=float, default=None, help="Goodput: most seconds between two tokens of a query.")
@click.option("--alone", type=click.IntRange(0), default=8, show_default=True, help="Answers held against alone.")
@click.option("--accuracy", type=click.IntRange(1), help="Questions of each task of the built-in model, held out.")
@click.option("--json", "json_file", type=click.Path(), help="All figures, for `baton compare`.")
@click.option("--append", is_flag=True, help="Adds the runs to those in the --json file, if it is there.")
@click.option("--in-turn", type=click.IntRange(1, 65535), metavar="PORT", help="Iteration by iteration with another.")
@click.option("--html", "html_file", type=click.Path(), help="All figures and plots on one page, for people.")
def bench(config_file: str | None, **options: Any) -> None:
    """Runs one workload through several policies and settings on one engine and compares them.

    Runs are alternated and repeated; medians are shown. Every answer is greedy and of a set length.

    --in-turn alternates the iterations with those of another `baton bench` of the same PORT, started beside this one:
    `baton compare` then finds small changes on noisy machines, too.
    """
    config, asked = _parted(options, config_file)
    refuse_bench(config, asked)
    from baton.cli.bench import run_bench

    run_bench(config, {**asked, "seed": config.seed})


@cli.command(epilog="Example:  baton tune Qwen/Qwen3-0.6B --goal-ms 50 --json costs.json")
@settings(without=SERVING | {"policy", "trace"})
@click.option("--goal-ms", type=click.FloatRange(0.001), default=None, help="Most milliseconds between two tokens.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=256, show_default=True, help="Of a usual query.")
@click.option("--answer-tokens", type=click.IntRange(1), default=128, show_default=True, help="Of a usual query.")
@click.option("--most-rows", type=click.IntRange(1), default=32, show_default=True, help="Rows that are tried.")
@click.option("--json", "json_file", type=click.Path(), help="The costs, for `baton simulate`.")
def tune(config_file: str | None, **options: Any) -> None:
    """Measures this machine and advises rows and chunk for a latency goal, with the curve.

    Iterations are measured by rows and by prompt tokens, through an engine with a listening client. Throughput and
    latency for queries of the given lengths are computed from these.
    """
    config, asked = _parted(options, config_file)
    refuse_file("json", asked)
    from baton.measure.tune import run_tune

    run_tune(config, asked)


@cli.command(epilog="Example:  baton simulate --costs costs.json --queries 10000 --policies orca,baton")
@settings(without=SERVING | LOADING | {"policy", "trace"})
@click.option("--costs", required=True, metavar="FILE", help="What forwards cost, as `baton tune --json` writes it.")
@click.option("--memory", type=int, default=64 * 2**30, show_default=True, help="Bytes that are free for rows.")
@click.option("--policies", default="run_to_completion,orca,baton", show_default=True, help="Which to compare.")
@click.option("--vary", multiple=True, metavar="SETTING=A,B", help="Also with each of these values; may be repeated.")
@workload
@click.option("--goal-first", type=float, default=None, help="Goodput: most seconds to the first token.")
@click.option("--goal-token", type=float, default=None, help="Goodput: most seconds a token, on average.")
@click.option("--goal-gap", type=float, default=None, help="Goodput: most seconds between two tokens of a query.")
@click.option("--json", "json_file", type=click.Path(), help="All figures.")
def simulate(config_file: str | None, **options: Any) -> None:
    """Runs workloads and policies against measured costs, without a device: for what cannot be run here.

    The engine and the policies are those that serve; only a forward is a number of seconds.
    """
    config, asked = _parted(options, config_file)
    refuse_simulate(config, asked)
    from baton.measure.simulate import run_simulate

    run_simulate(config, {**asked, "seed": config.seed})


@cli.command(epilog="Example:  baton compare before.json after.json")
@click.argument("first", metavar="A.json", type=click.Path())
@click.argument("second", metavar="B.json", type=click.Path())
@click.option("--tolerance", type=click.FloatRange(0), default=0.03, show_default=True, help="What is no matter.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def compare(first: str, second: str, tolerance: float, as_json: bool) -> None:
    """Compares two reports of `baton bench`: speed beyond noise, equality and accuracy of answers.

    Exit status 1 if B is slower, answers differently, or answers fewer questions rightly. This needs 7 runs of each, or
    10 runs made in turn (`baton bench --in-turn`), which show smaller changes.
    """
    from baton.bench.commands import run_compare

    run_compare(first, second, tolerance=tolerance, as_json=as_json)


@cli.command(epilog="Example:  baton load http://127.0.0.1:8000 --arrivals poisson:2 --mode timed --queries 100")
@click.argument("url")
@click.option("--api-key", envvar="BATON_API_KEY", default=None, help="Sent as a bearer token.")
@click.option("--model-name", default=None, help="Which model to ask.  [default: the server's first]")
@click.option("--text", is_flag=True, help="Prompts of words; else of token ids, which not every server takes.")
@click.option("--field", "fields", multiple=True, metavar="NAME=JSON", help="A request field more; may be repeated.")
@click.option("--goal-first", type=float, default=None, help="Goodput: most seconds to the first token.")
@click.option("--goal-token", type=float, default=None, help="Goodput: most seconds a token, on average.")
@click.option("--goal-gap", type=float, default=None, help="Goodput: most seconds between two tokens of a query.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of lengths, times and prompts.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Runs, each with new prompts.")
@click.option("--json", "json_file", type=click.Path(), help="All figures, for `baton compare`.")
@click.option("--append", is_flag=True, help="Adds the runs to those in the --json file, if it is there.")
@workload
def load(url: str, **options: Any) -> None:
    """Sends a workload to any OpenAI-compatible server and measures the answers.

    It asks /v1/completions with streams, greedily, for answers of a set length (ignore_eos). It also reports its own
    delays: how late queries were asked, and how late its event loop came round.
    """
    check_address(url)
    from baton.bench.commands import run_load

    run_load(url, options)


@cli.command(epilog="Example:  baton top http://127.0.0.1:8000")
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--api-key", envvar="BATON_API_KEY", default=None, help="Sent as a bearer token.")
def top(url: str, api_key: str | None) -> None:
    """Shows the live page in a terminal: the running batch, its figures and what limits it. q or Ctrl-C ends.

    If its output is not a terminal, it prints the state once.
    """
    check_address(url)
    from baton.observe.top import run_top

    run_top(url, api_key)


@cli.command(epilog="Example:  baton serve --trace day.jsonl   and then   baton explain day.jsonl chatcmpl-1a2b3c4d-7")
@click.argument("trace", type=click.Path())
@click.argument("query", required=False)
@click.option("--every", is_flag=True, help="Every iteration; else iterations that only decode are one line.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def explain(trace: str, query: str | None, every: bool, as_json: bool) -> None:
    """Shows one query's way through the engine, with the scheduler's reasons.

    TRACE was written with --trace. QUERY is the id of an answer or of a query; without it, all queries are listed.
    """
    from baton.observe.explain import run_explain

    run_explain(trace, query, every=every, as_json=as_json)


def _print_limits(limits: Limits, as_json: bool) -> None:
    rows = list(table(limits))
    if as_json:
        click.echo(json.dumps({row.flag: row.value for row in rows}))
        return
    width = max(len(row.flag) for row in rows)
    for row in rows:
        click.echo(f"{row.flag:{width}}  {row.value:>10,}  {row.meaning}")


def _config(flags: dict[str, Any], config_file: str | None) -> Config:
    config = load_config(flags, file=config_file)
    refuse(config)
    start_logging(config.log_level)
    return config


def _parted(options: dict[str, Any], config_file: str | None) -> tuple[Config, dict[str, Any]]:
    """Splits a verb's options into the settings and the verb's own options."""
    known = {field.name for field in dataclasses.fields(Config)} | set(OLD_NAMES)
    config = _config({name: value for name, value in options.items() if name in known}, config_file)
    return config, {name: value for name, value in options.items() if name not in known}


def _lines(source: TextIO | None, *, wanted: bool) -> list[str]:
    if source is None and (not wanted or sys.stdin is None or sys.stdin.isatty()):
        return []
    source = source or sys.stdin
    with named("prompts in", getattr(source, "name", "memory"), param="file"):
        return [line.strip() for line in source if line.strip()]


def _fail(message: str, status: int) -> NoReturn:
    with contextlib.suppress(OSError):  # the exit status says it too
        click.echo(f"baton: {' '.join(message.split())}", err=True)
    sys.exit(status)
