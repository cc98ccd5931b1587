"""What the verbs of the command line do once their settings are known."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from tqdm import tqdm

from baton import __version__, builtin
from baton.chat.conversation import converse
from baton.chat.local import Here
from baton.cli.live import live_view, read_bytes_per_second
from baton.compose import EngineHandle, free_bytes, model_name, open_engine, set_threads
from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.errors import CheckFailed, InvalidValue, QueryFailed, RequestError, Unsupported
from baton.core.events import QueryRejected
from baton.core.query import Query, SamplingParams
from baton.llm import Completion, stats_of
from baton.loader.choose import planned
from baton.loader.load import device_asked, load
from baton.loader.oracle import Oracle
from baton.loader.survey import survey
from baton.measure.check import Outcome, check
from baton.model.device import device_of
from baton.observe.metrics import Metrics
from baton.observe.timeline import Timeline
from baton.server.app import create_app
from baton.server.auth import access_of, is_loopback
from baton.server.run import Hang, bind, serve


class _Errors(Console):
    """What is told to people on stderr. A server goes on where that is full, or nobody reads it any more."""

    def print(self, *args: Any, **kw: Any) -> None:
        with contextlib.suppress(OSError):
            super().print(*args, **kw)

    def on_broken_pipe(self) -> None:
        """Ends the process by itself otherwise."""
        self.quiet = True


_errors = _Errors(stderr=True, highlight=False, soft_wrap=True)


def run_server(config: Config, began: float) -> None:
    """Binds, loads, serves until told to end. `began`: when the command started, on time.perf_counter."""
    bound = bind(config.host, config.port)
    access = access_of(config, bound.getsockname()[0])
    metrics = Metrics(model_name(config), monotonic, compat=config.metrics_compat == "vllm")
    _errors.print(f"[bold]baton {__version__}[/bold]  {'the built-in model' if not config.model else config.model}")
    _told("imports", time.perf_counter() - began)
    set_threads(config)
    read_bytes, timeline = read_bytes_per_second(), Timeline()
    house = open_engine(config, sinks=[metrics, timeline], told=_told)
    opened = time.perf_counter()
    house.client.prepare()
    _told("forms", time.perf_counter() - opened)
    metrics.max_rows = house.settings.max_rows
    _errors.print(_resolved(house))
    if not access.keys and not is_loopback(bound.getsockname()[0]):
        _errors.print("[yellow]anyone who can reach this address may use it[/yellow]: --api-key asks for a key")
    app = create_app(
        house.client,
        render_metrics=lambda: metrics.render(house.client.stats()),
        live=live_view(house, timeline, read_bytes),
        version=__version__,
        access=access,
        reject=lambda code: metrics(QueryRejected(monotonic(), code)),
    )

    app.openapi()  # made once, and not while others wait for the event loop

    def started(url: str) -> None:
        took = time.perf_counter() - began
        _errors.print(
            f"[bold green]ready[/bold green] after {took:.1f} s: {url}  (chat page; /live; API under /v1; Ctrl-C ends)"
        )

    try:
        serve(
            app,
            bound,
            drain=house.client.drain,
            drain_timeout_seconds=config.drain_timeout,
            limits=house.settings.limits,
            hang=Hang(config.hang_timeout, config.hang_exit * config.hang_timeout, house.client.stuck_seconds),
            on_started=started,
        )
    finally:
        house.close()
        with contextlib.suppress(OSError):  # the terminal is closed
            _errors.print(_summary(house))


def run_generate(
    config: Config,
    lines: Sequence[str],
    params: SamplingParams,
    *,
    chat: bool | None,
    as_json: bool,
    show_stats: bool,
) -> None:
    """All prompts through one batch; answers on stdout in the order of the prompts, each as soon as it can be."""
    house = open_engine(config)
    client = house.client
    try:
        prompts = [_tokens(house, line, chat) for line in lines]
        queries = [query for prompt in prompts for query in client.queries(prompt, params)]
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
            _errors.print_json(json.dumps(stats_of(client)))
        if failed:
            raise QueryFailed(f"{failed} of {len(queries)} prompts could not be finished")
    finally:
        house.close()


def run_chat(config: Config, *, system: str | None, sampling: Mapping[str, Any]) -> None:
    """A conversation with a model in this process, in one row of its batch."""
    with _errors.status(f"loading {model_name(config)}") if _errors.is_terminal else contextlib.nullcontext():
        house = open_engine(config)
    try:
        converse(Here(house.client), system=system, sampling=sampling)
    finally:
        house.close()


def run_info(config: Config, as_json: bool) -> None:
    """A model's shapes, bytes per token, and what fits in this machine's memory."""
    set_threads(config)
    found = survey(config.model or str(builtin.path()), trust_remote_code=config.trust_remote_code)
    device = device_asked(config.device)
    asked = device_of(device).dtype(config.dtype, found.saved_dtype)
    dtype = getattr(torch, asked)
    footprint = found.footprint(dtype)
    whole = footprint.of(found.context_tokens)
    weights = found.parameters * dtype.itemsize
    free = free_bytes(device)
    room = max(free - weights, 0)
    facts: dict[str, Any] = {
        "model": model_name(config),
        "family": found.family,
        "parameters": found.parameters,
        "layers": found.layers,
        "vocabulary": found.vocabulary,
        "context_tokens": found.context_tokens,
        "context_source": found.context_source,
        "device": device.type,
        "dtype": asked,
        "steps": planned(device),
        "weight_bytes": weights,
        "kv_bytes_per_token": footprint.token_bytes,
        "state_bytes_per_row": footprint.state_bytes,
        "kv_bytes_of_a_full_row": whole,
        "windows": found.geometry.windows if found.geometry else [],
        "free_memory_bytes": free,
        "full_rows_that_fit": room // whole if whole else 0,
        "batched": found.refused is None,
        "why_not": found.refused,
    }
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if value not in (None, []):
            shown = _bytes(value) if "bytes" in name else f"{value:,}" if type(value) is int else str(value)
            table.add_row(name.replace("_", " "), shown)
    Console(highlight=False).print(table)


def run_check(config: Config, *, tokens: int, longest: int | None, as_json: bool) -> None:
    """Compares every way of running a model with the model alone. Exits with status 1 where they differ."""
    set_threads(config)
    name, oracle = model_name(config), Oracle(answer=tokens, longest=longest)
    if config.max_model_len.isdecimal():
        oracle.context = int(config.max_model_len)
    told = (lambda phase, seconds: None) if as_json else _told
    loaded = load(config, config.model or str(builtin.path()), name, told=told, before=oracle)
    if not as_json:
        _errors.print(f"  {name}, {loaded.dtype} on {loaded.device}: {loaded.forward.description}")
    done: list[Outcome] = []
    with Live(_verdicts(done), console=_errors, transient=True) if not as_json else contextlib.nullcontext() as live:
        for outcome in check(loaded, oracle, config):
            done.append(outcome)
            if live is not None:
                live.update(_verdicts(done))
    failed = [outcome.name for outcome in done if not outcome.passed]
    if as_json:
        facts = [{**dataclasses.asdict(outcome), "passed": outcome.passed} for outcome in done]
        about = {"model": name, "dtype": str(loaded.dtype).removeprefix("torch."), "device": str(loaded.device)}
        run = {"way": loaded.forward.way.value, "whole_prompts": loaded.forward.whole_prompts}
        print(json.dumps({**about, **run, "notes": oracle.notes, "passed": not failed, "scenarios": facts}))
    else:
        console = Console(highlight=False)
        console.print(_verdicts(done))
        for note in oracle.notes:
            console.print(f"note: {note}")
    if failed:
        raise CheckFailed(f"{name} does not give the same as alone: {', '.join(failed)}")


def _verdicts(done: Sequence[Outcome]) -> Table:
    table = Table(box=None)
    table.add_column("what was done", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("result")
    for outcome in done:
        if outcome.skipped is not None:
            table.add_row(outcome.what, "", "", f"[yellow]not checked[/yellow]: {outcome.skipped}")
            continue
        verdict = "[green]same as alone[/green]" if outcome.passed else "[red]differs[/red]"
        if outcome.diverged is not None:
            verdict += " from token {1} of query {0} on".format(*outcome.diverged)
        ties = f"{outcome.ties} near tie{'s' * (outcome.ties > 1)}"
        notes = [ties] * bool(outcome.ties) + [outcome.evidence] * bool(outcome.evidence)
        verdict += f" ({', '.join(notes)})" if notes else ""
        table.add_row(outcome.what, str(outcome.tokens), f"{outcome.difference:.1e}", verdict)
    return table


def _tokens(house: EngineHandle, line: str, chat: bool | None) -> list[int]:
    """A line is a prompt, or JSON: a string, {"prompt": ...}, {"messages": [...]} or {"prompt_token_ids": [...]}."""
    tokenizer = house.client.tokenizer
    asked: Any = line
    if line.startswith(("{", '"')):
        try:
            asked = json.loads(line)
        except json.JSONDecodeError:
            asked = line
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
        _errors.print(f"{line[:60]!r}: {completion.error}", markup=False)
    if count == 1:
        print(completion.text, flush=True)
    else:
        print(f"> {line}\n{completion.text}\n", flush=True)


def _bar_wanted(count: int) -> bool:
    return count > 1 and sys.stderr.isatty()


def _told(phase: str, seconds: float) -> None:
    _errors.print(f"  {phase:<12}{seconds:6.2f} s")


def _resolved(house: EngineHandle) -> str:
    facts, settings, loaded = house.facts, house.settings, house.loaded
    lines = {
        "model": f"{loaded.name}, {loaded.parameters / 1e6:,.1f} M parameters, {facts.dtype} on {facts.device}",
        "batch": f"policy {settings.policy}, {settings.max_rows} rows of up to {settings.max_model_len} tokens",
        "context": f"{facts.context_tokens:,} tokens ({facts.context_source})",
        "run with": loaded.forward.description + ("; shapes are fixed" if settings.deterministic else ""),
        "KV memory": f"{_bytes(settings.kv_bytes)} for rows and {_bytes(settings.pool_bytes)} "
        f"{'' if facts.pool_free_bytes is None else 'of the host '}for what is set aside, "
        f"{_bytes(facts.footprint.token_bytes)} a token" + _mapped(house),
        "threads": f"{torch.get_num_threads()} of {facts.cores} cores",
    }
    return "\n".join(f"  {name:<12}{value}" for name, value in lines.items())


def _mapped(house: EngineHandle) -> str:
    """How memory is had, where it was asked to be mapped as rows grow."""
    if house.settings.kv_mapping:
        return ", mapped as rows grow"
    why_not = house.loaded.why_not_mapped or (house.loaded.driver and "not for padded rows")
    return f"; not mapped as rows grow: {why_not}" if why_not else ""


def _summary(house: EngineHandle) -> str:
    stats = house.client.stats()
    finished = stats.outcomes.get("finished", 0)
    return (
        f"ended: {finished} queries finished, {stats.generated_tokens:,} tokens generated, "
        f"{stats.slots.idle_ratio:.1%} of the computed token slots were idle"
    )


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
