"""The command line: `baton` and its verbs, of which two files hold more. Errors are one line on stderr.

torch is imported only by what a verb runs, so that `--help` and bad settings answer at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from typing import Any, NoReturn

import click

from baton import __version__
from baton.cli.asking import ANSWERING
from baton.cli.flags import WithLimits, settings
from baton.cli.foreign import check_address, hint
from baton.cli.given import config_of
from baton.cli.measuring import MEASURING
from baton.core.config import load_config
from baton.core.errors import BatonError
from baton.core.limits import Limits, table

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

    MODEL is a hub id, a folder or a GGUF file (REPO:Q4_K_M from the hub); left out, the built-in model is served.
    Several models, each a MODEL or NAME=MODEL, run in a process each; with --load-on-demand a model is loaded when it
    is asked for.
    """
    began = time.perf_counter()
    config = config_of(flags, config_file)
    from baton.cli.serve import run_server

    run_server(config, began)


@cli.command(epilog="Example:  baton info Qwen/Qwen3-0.6B")
@click.argument("model", required=False)
@click.option("--device", default=None, metavar="DEVICE", help="Where it would run.  [default: the best there is]")
@click.option("--dtype", default=None, metavar="DTYPE", help="As if the model were loaded so.  [default: as it is run]")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run Python code that comes with the model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--limits", "limits_wanted", is_flag=True, help="The server's limits and their flags instead.")
def info(as_json: bool, limits_wanted: bool, **flags: Any) -> None:
    """Shows a model's shapes, bytes per token and what fits in this machine's memory. Reads no weights."""
    config = config_of(flags, None)
    if limits_wanted:
        _print_limits(config, as_json)
        return
    from baton.cli.info import run_info

    run_info(config, as_json)


@cli.command(epilog="Example:  baton deploy Qwen/Qwen3-0.6B --replicas 1-8 --image registry/baton:1 > baton.yml")
@settings(
    without=frozenset({"host", "port", "api_key", "api_key_file", "ray_address", "trace", "handover", "batch_dir"})
)
@click.option("--as", "form", type=click.Choice(["rayservice", "serve"]), default="rayservice", show_default=True)
@click.option("--image", default="baton:latest", show_default=True, help="The image of all pods.")
@click.option("--fronts", type=click.IntRange(1), default=1, show_default=True, help="Replicas of the HTTP server.")
@click.option(
    "--no-resume", is_flag=True, help="Each engine has its server, and there are no fronts: streams end with it."
)
@click.option("--name", default="baton", show_default=True, help="Of the RayService.")
def deploy(
    config_file: str | None, form: str, image: str, fronts: int, no_resume: bool, name: str, **flags: Any
) -> None:
    """Prints a manifest of this server with several engines: for KubeRay, or for `serve deploy`.

    Keys come from a Secret, as BATON_API_KEY of the pods.
    """
    config = load_config(flags, file=config_file, environment={})
    from baton.cli.deploy import manifest

    click.echo(manifest(config, form, image=image, fronts=fronts, name=name, resume=not no_resume), nl=False)


@cli.command(epilog="Example:  baton top http://127.0.0.1:8000")
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--api-key", envvar="BATON_API_KEY", default=None, help="Sent as a bearer token.")
@click.option(
    "--replica", default=None, metavar="NAME", help="The engine to look at, of several.  [default: the first]"
)
def top(url: str, api_key: str | None, replica: str | None) -> None:
    """Shows the live page in a terminal: the running batch, its figures and what limits it. q or Ctrl-C ends.

    If its output is not a terminal, it prints the state once.
    """
    check_address(url)
    from baton.observe.top import run_top

    run_top(url, api_key, replica)


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


for _verb in (*ANSWERING, *MEASURING):
    cli.add_command(_verb)


def _print_limits(limits: Limits, as_json: bool) -> None:
    rows = list(table(limits))
    if as_json:
        click.echo(json.dumps({row.flag: row.value for row in rows}))
        return
    width = max(len(row.flag) for row in rows)
    for row in rows:
        click.echo(f"{row.flag:{width}}  {row.value:>10,}  {row.meaning}")


def _fail(message: str, status: int) -> NoReturn:
    with contextlib.suppress(OSError):  # the exit status says it too
        click.echo(f"baton: {' '.join(message.split())}", err=True)
    sys.exit(status)
