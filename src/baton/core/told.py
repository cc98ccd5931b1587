"""Updates as plain data and back, to be kept in files and sent to other processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from baton.core.events import TokenLogprobs, Update, Usage


def told(update: Update) -> list[Any]:
    """An update as plain JSON: its fields in their order. Fields at the end that have their defaults are left out."""
    values: list[Any] = [
        update.query_id,
        list(update.token_ids),
        update.text,
        update.finish_reason,
        update.error,
        None if update.usage is None else dataclasses.asdict(update.usage),
        _scores(update.logprobs),
        _scores(update.prompt_logprobs),
        update.infeasible,
        update.stopped_by,
        update.code,
    ]
    while len(values) > 1 and values[-1] in _NOTHING:
        values.pop()
    return values


def heard(values: Sequence[Any]) -> Update:
    """The update of what `told` returned. Raises TypeError, ValueError or AttributeError for anything else."""
    name, tokens, text, reason, error, usage, logprobs, prompt_logprobs, infeasible, stopped_by, code = (
        *values,
        *_DEFAULTS[len(values) :],
    )
    return Update(
        str(name),
        tuple(map(int, tokens)),
        str(text),
        reason,
        error,
        None if usage is None else Usage(**usage),
        _of_scores(logprobs),
        _of_scores(prompt_logprobs),
        bool(infeasible),
        stopped_by,
        code,
    )


_NOTHING: tuple[Any, ...] = ([], "", None, False)
_DEFAULTS: tuple[Any, ...] = ("", [], "", None, None, None, [], [], False, None, None)


def _scores(logprobs: Iterable[TokenLogprobs]) -> list[Any]:
    return [[one.token_id, one.logprob, one.rank, [list(pair) for pair in one.best]] for one in logprobs]


def _of_scores(values: Iterable[Sequence[Any]]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(int(token), float(logprob), int(rank), tuple((int(other), float(score)) for other, score in best))
        for token, logprob, rank, best in values
    )
