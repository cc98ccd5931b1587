"""`baton generate`: all prompts through one batch."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from baton.cli.show import errors
from baton.compose import EngineHandle, open_engine
from baton.core.config import Config
from baton.core.errors import InvalidValue, QueryFailed, RequestError, Unsupported
from baton.core.query import Query, SamplingParams
from baton.llm import Completion, stats_of


def run_generate(
    config: Config,
    lines: Sequence[str],
    params: SamplingParams,
    *,
    chat: bool | None,
    as_json: bool,
    show_stats: bool,
) -> None:
    """Runs all prompts through one batch.

    Answers go to stdout in the order of the prompts, each as soon as possible.
    """
    engine = open_engine(config)
    client = engine.client
    try:
        prompts = [_tokens(engine, line, chat) for line in lines]
        queries = [
            query for prompt in prompts for query in client.queries(prompt, params.with_defaults(client.defaults))
        ]
        done: dict[str, Completion] = {query.id: Completion(0) for query in queries}
        shown = failed = 0
        with tqdm(total=len(queries), unit="query", file=sys.stderr, disable=not _bar_wanted(len(queries))) as bar:
            for update in client.run(queries):
                completion = done[update.query_id]
                completion.text += update.text
                completion.token_ids.extend(update.token_ids)
                completion.finish_reason, completion.error = update.finish_reason, update.error
                failed += update.error is not None
                bar.update(update.finish_reason is not None)
                while shown < len(queries) and done[queries[shown].id].finish_reason is not None:
                    _print(lines[shown], queries[shown], done.pop(queries[shown].id), as_json, len(queries))
                    shown += 1
        if show_stats:
            errors.print_json(json.dumps(stats_of(client)))
        if failed:
            raise QueryFailed(f"{failed} of {len(queries)} prompts could not be finished")
    finally:
        engine.close()


def _tokens(engine: EngineHandle, line: str, chat: bool | None) -> list[int]:
    """The tokens of a line: a prompt, or JSON.

    JSON may be a string, {"prompt": ...}, {"messages": [...]} or {"prompt_token_ids": [...]}.
    """
    tokenizer, asked = engine.client.tokenizer, _read(line)
    if isinstance(asked, dict):
        unknown = sorted(set(asked) - {"prompt", "messages", "prompt_token_ids"})
        if unknown:
            raise Unsupported(f"{unknown[0]} is not honoured in a prompt's line", param=unknown[0])
        if "messages" in asked:
            return tokenizer.chat(asked["messages"])
        if isinstance(asked.get("prompt_token_ids"), list):
            return list(asked["prompt_token_ids"])
        asked = asked.get("prompt")
    if not isinstance(asked, str):
        raise InvalidValue(f"not a prompt: {line[:80]}", param="prompt")
    if chat is False:
        return tokenizer.encode(asked)
    try:
        return tokenizer.chat([{"role": "user", "content": asked}])
    except RequestError:
        if chat:
            raise
        return tokenizer.encode(asked)


def _read(line: str) -> Any:
    """The line's value if it is JSON, or else the line itself."""
    if line.startswith(("{", '"')):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(line)
    return line


def _print(line: str, query: Query, completion: Completion, as_json: bool, count: int) -> None:
    if as_json:
        row = {
            "text": completion.text,
            "token_ids": completion.token_ids,
            "finish_reason": completion.finish_reason,
            "prompt_tokens": len(query.prompt),
        }
        if completion.error is not None:
            row["error"] = completion.error
        print(json.dumps(row), flush=True)
        return
    if completion.error is not None:
        errors.print(f"{line[:60]!r}: {completion.error}", markup=False)
    if count == 1:
        print(completion.text, flush=True)
    else:
        print(f"> {line}\n{completion.text}\n", flush=True)


def _bar_wanted(count: int) -> bool:
    return count > 1 and sys.stderr.isatty()
