"""The verbs that answer: prompts, a file of requests, a conversation. torch is imported only by what a verb runs."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, TextIO

import click

from baton.cli.flags import SERVING, settings
from baton.cli.foreign import check_address
from baton.cli.given import config_of
from baton.core.errors import RequestError, SettingError
from baton.core.files import named
from baton.core.limits import flag_of
from baton.core.query import SamplingParams

if TYPE_CHECKING:
    from baton.chat.remote import Remote


@click.command(epilog='Example:  baton generate -p "What is 17 + 25?" -p "Is 2048 a leap year?"')
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
    config = config_of(flags, config_file)
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


@click.command(epilog="Example:  baton batch questions.jsonl -o answers.jsonl")
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
        run_here(config_of(flags, config_file), source, output)
        return
    given = [flag_of(name) for name, value in flags.items() if value is not None and name not in ("model", "seed")]
    if given or flags["model"]:
        raise SettingError(f"{(given or ['MODEL'])[0]} is for a model in this process, not for a server")
    check_address(server)
    config = config_of({"seed": flags["seed"]}, config_file)
    run_on_server(config, source, output, url=server, api_key=api_key, at_once=at_once or 16)


@click.command(epilog="Example:  baton chat http://127.0.0.1:8000 --temperature 0.7")
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
        known = config_of({}, config_file).api_key
        with closing(_server(flags["model"], api_key or next(iter(known), None), model_name)) as server:
            converse(server, system=system, sampling=sampling)
        return
    check_address(flags["model"] or "")
    for flag, value in (("--api-key", api_key), ("--model-name", model_name)):
        if value is not None:
            raise SettingError(f"{flag} is for a server: give its address, like http://127.0.0.1:8000")
    config = config_of(flags, config_file)
    from baton.cli.chat import run_chat

    run_chat(config, system=system, sampling=sampling)


def _server(url: str, api_key: str | None, model: str | None) -> Remote:
    from baton.chat.remote import Remote, may_be_sent

    if api_key is None and may_be_sent(url):
        api_key = os.environ.get("OPENAI_API_KEY")
    return Remote(url, api_key=api_key, model=model)


def _lines(source: TextIO | None, *, wanted: bool) -> list[str]:
    if source is None and (not wanted or sys.stdin is None or sys.stdin.isatty()):
        return []
    source = source or sys.stdin
    with named("prompts in", getattr(source, "name", "memory"), param="file"):
        return [line.strip() for line in source if line.strip()]


ANSWERING = (generate, batch, chat)
