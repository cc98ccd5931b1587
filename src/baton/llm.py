"""The Python interface: `LLM` for scripts and `AsyncLLM` for asyncio, on the same engine as the server."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from baton.compose import EngineHandle, open_engine
from baton.core.config import Config, make_config
from baton.core.errors import EngineUnhealthy, InvalidValue, QueryFailed, Unsupported
from baton.core.events import Slots
from baton.core.query import NO_OPTIONS, RequestOptions, SamplingParams
from baton.core.template_options import TemplateOptions, check_variables
from baton.engine.client import Client, Message, Tool
from baton.outputs import Completion as Completion
from baton.outputs import Logprob as Logprob
from baton.outputs import Logprobs as Logprobs
from baton.outputs import RequestOutput as RequestOutput
from baton.outputs import failure_of, prepare
from baton.policy.port import Policy

log = logging.getLogger("baton.llm")

Prompt = str | Mapping[str, Any] | Sequence[int]
"""A text, token ids, `{"prompt": text}` or `{"prompt_token_ids": [...]}`; a mapping may have a `cache_salt`."""

Sampling = SamplingParams | Sequence[SamplingParams]
"""One for all prompts, or one each."""

Bar = bool | Callable[..., tqdm]
"""Whether a progress bar is shown on a terminal, or what makes one, called as `tqdm` is."""


class _Engine:
    """What both interfaces share: the engine opened from keyword settings, closed once."""

    def __init__(self, model: str | None = None, *, policy: str | Policy = "baton", **settings: object) -> None:
        """Settings are those of the command line, with underscores: `max_batch_size=8`, `dtype="bfloat16"`, ...

        Raises SettingError, with the name, for an unknown setting; LoadError if the model cannot be loaded or batched
        exactly.
        """
        named: dict[str, object] = {"policy": policy} if isinstance(policy, str) else {}
        if model is not None:
            named["model"] = model
        self.config: Config = make_config({**named, **settings})
        self._engine: EngineHandle | None = open_engine(self.config, policy=None if isinstance(policy, str) else policy)
        self._last: dict[str, Any] = {}

    @property
    def client(self) -> Client:
        if self._engine is None:
            raise EngineUnhealthy("this engine was closed")
        return self._engine.client

    def stats(self) -> dict[str, Any]:
        """Rows, columns, idle fractions and counts, see `stats_of`; after `close` the last values."""
        return stats_of(self._engine.client) if self._engine is not None else self._last

    def close(self) -> None:
        """Cancels live queries and frees the engine's thread and memory, including the model's. May be called twice."""
        if self._engine is not None:
            self._engine.close()
            self._last = self.stats()
            self._engine = None
            gc.unfreeze()  # see open_engine

    def _encode(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self.client.tokenizer.encode(prompt)
        if not isinstance(prompt, Mapping):
            prompt = {"prompt_token_ids": prompt}
        unknown = sorted(set(prompt) - {"prompt", "prompt_token_ids", "cache_salt"})
        if unknown and len(unknown) < len(prompt):
            raise Unsupported(f"{unknown[0]} is not honoured in a prompt", param=unknown[0])
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if isinstance(text, str) and ids is None:
            return text, self.client.tokenizer.encode(text)
        if isinstance(ids, Iterable) and not isinstance(ids, str):
            return text, list(ids)
        raise InvalidValue(
            'a prompt is a text, token ids, {"prompt": text} or {"prompt_token_ids": [...]}', param="prompt"
        )


class LLM(_Engine):
    """Generates for many prompts at once, through one running batch; results in the order of the prompts.

    >>> with LLM() as llm:
    ...     llm.generate(["Hello", "The sky is"], SamplingParams(temperature=0, max_tokens=32))
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Sampling | None = None,
        use_tqdm: Bar = True,
        *,
        params: Sampling | None = None,
    ) -> list[RequestOutput]:
        """Continues each prompt. `params`: the former name of `sampling_params`.

        A query that fails by itself does not affect others' results: its completion has `finish_reason` "error" and
        says why in `error`. Raises RequestError, before anything runs, if a prompt or a field cannot be honoured.
        """
        some: Sequence[Any] = [prompts] if _is_one(prompts) else list(prompts)
        each = _each(_renamed(sampling_params, params), len(some))
        options = [RequestOptions(cache_salt=_salt(prompt)) for prompt in some]
        return self._run([self._encode(prompt) for prompt in some], each, use_tqdm, options)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Sampling | None = None,
        use_tqdm: Bar = True,
        *,
        params: Sampling | None = None,
        tools: Sequence[Tool] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[RequestOutput]:
        """Answers one conversation, or several: each a list of `{"role": ..., "content": ...}`.

        `tools`: as OpenAI writes them; `chat_template_kwargs`: variables of the chat template, such as
        `enable_thinking`. With `continue_final_message` (and without a generation prompt) the last message is
        continued.
        """
        several: Any = messages
        talks = [several] if several and isinstance(several[0], Mapping) else list(several)
        each = _each(_renamed(sampling_params, params), len(talks))
        tokenizer, variables = self.client.tokenizer, chat_template_kwargs or {}
        check_variables(variables, tokenizer.template_variables, "chat_template_kwargs")
        if continue_final_message and add_generation_prompt:
            message = "continue_final_message and add_generation_prompt cannot both be true"
            raise InvalidValue(message, param="continue_final_message")
        options = TemplateOptions(variables, add_generation_prompt, continue_final_message)
        encoded = [(None, tokenizer.chat(talk, tools or (), options)) for talk in talks]
        return self._run(encoded, each, use_tqdm, [NO_OPTIONS] * len(talks))

    def _run(
        self,
        prompts: Sequence[tuple[str | None, list[int]]],
        params: Sequence[SamplingParams],
        use_tqdm: Bar,
        options: Sequence[RequestOptions],
    ) -> list[RequestOutput]:
        outputs, asked = prepare(self.client, prompts, params, options)
        with _bar(use_tqdm, len(asked)) as bar:
            for update in self.client.run([one.query for one in asked.values()]):
                asked[update.query_id].take(update, self.client.tokenizer)
                bar.update(update.finish_reason is not None)
        failed = [one.completion.error for one in asked.values() if one.completion.error is not None]
        if failed:
            log.warning("%d of %d queries failed: %s", len(failed), len(asked), failed[0])
        return outputs


class AsyncLLM(_Engine):
    """The same engine for asyncio: many `generate` at once share the running batch."""

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        params: SamplingParams | None = None,
        priority: int = 0,
        deadline_ms: int | None = None,
        user: str = "",
    ) -> AsyncIterator[RequestOutput]:
        """Yields the output so far whenever it grew; closing the iterator cancels the query.

        Lower `priority` runs first, and each `user` gets a share, under policies that honour it (docs/policies.md).
        Raises RequestError and QueueFull; when all choices have ended, also the error of the first that failed:
        QueryFailed, or DeadlinePassed if it was not done `deadline_ms` from now. The last output has every choice's
        result.
        """
        options = RequestOptions(priority, deadline_ms, user, cache_salt=_salt(prompt))
        each = _each(_renamed(sampling_params, params), 1)
        # Long prompts and the compilation of forms need a thread, so that others go on meanwhile.
        (output,), asked = await asyncio.to_thread(
            lambda: prepare(self.client, [self._encode(prompt)], each, [options])
        )
        stream = self.client.stream([one.query for one in asked.values()])
        try:
            failed: QueryFailed | None = None
            async for update in stream:
                asked[update.query_id].take(update, self.client.tokenizer)
                failed = failed or failure_of(update)
                yield output
            if failed is not None:
                raise failed
        finally:
            await stream.aclose()


# The engine's numbers that count queries now.
_QUERIES = ("running", "waiting", "prefilling", "ready", "preempted")


def stats_of(client: Client) -> dict[str, Any]:
    """The engine's numbers under the names of the metrics: gauges now, counts since the start."""
    stats = client.stats()
    slots: Slots = stats.slots
    total = slots.useful + slots.idle
    numbers = stats.numbers()
    queries = {name: numbers.pop(name) for name in _QUERIES}
    old = {f"pool_bytes_{what}": numbers[f"swap_bytes_{what}"] for what in ("used", "budget")}  # for one release
    return {
        **numbers,
        **old,
        "queries": {**queries, **stats.outcomes},
        "token_slots": slots.by_kind(),
        "idle_ratio": slots.idle_ratio,
        "idle_ratio_by_kind": {
            kind: count / total if total else 0.0 for kind, count in slots.by_kind().items() if kind != "useful"
        },
        "kv_columns": {"needed": slots.columns_needed, "padding": slots.columns_padding},
    }


def _is_one(prompts: Any) -> bool:
    """Whether this is one prompt, not several."""
    return isinstance(prompts, (str, Mapping)) or (bool(prompts) and all(isinstance(one, int) for one in prompts))


def _bar(asked: Bar, total: int) -> tqdm:
    make = tqdm if isinstance(asked, bool) else asked
    # None: shown if stderr is a terminal.
    quiet = {} if make is asked else {"disable": None if asked else True}
    return make(total=total, desc="Processed prompts", unit="query", dynamic_ncols=True, **quiet)


def _renamed(sampling_params: Sampling | None, params: Sampling | None) -> Sampling | None:
    """The sampling parameters under today's name or the former one."""
    if params is None:
        return sampling_params
    if sampling_params is not None:
        raise InvalidValue("sampling_params and params are the same: give sampling_params", param="params")
    # The warning points to the caller of generate or chat.
    warnings.warn("params is called sampling_params now", DeprecationWarning, stacklevel=3)
    return params


def _salt(prompt: Prompt) -> str | None:
    return prompt.get("cache_salt") if isinstance(prompt, Mapping) else None


def _each(params: Sampling | None, count: int) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidValue(f"{len(params)} SamplingParams for {count} prompts: give one, or one each")
    return params
