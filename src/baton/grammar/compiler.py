"""Compiles forms beside everything else: on threads of its own, within a time, few at once, each form once."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from functools import partial
from typing import Protocol

from baton.core.constraint import Constraint, OutputFormat
from baton.core.errors import QueueFull, RequestError, Unsupported
from baton.core.limits import LimitExceeded, Limits, flag_of
from baton.core.threads import started
from baton.grammar.matcher import Vocabulary, available, compiled

_KEPT = 64
_THREADS = 2


class Words(Protocol):
    """The part of a tokenizer that is used here; its body is `model/tokenizer.py`."""

    vocabulary: int

    def backend(self) -> str | None:
        """The fast tokenizer as JSON, None if there is none."""


class Grammars:
    """The constraints of one model's tokens.

    Safe to call from any thread but an event loop's, because the caller waits. A compilation cannot be stopped;
    llguidance bounds it by the grammar's size, to about a second. It goes on after its client was told that it took too
    long, and is there for the next request.
    """

    def __init__(
        self,
        words: Words,
        end_ids: Sequence[int],
        limits: Limits,
        compile: Callable[[OutputFormat, Vocabulary], Constraint] = compiled,
    ) -> None:
        self._vocabulary = partial(_vocabulary, words, tuple(end_ids))
        self._made: Vocabulary | None = None
        self._making = threading.Lock()
        self._limits = limits
        self._compile = compile
        self._lock = threading.Lock()
        self._compiled: OrderedDict[OutputFormat, Future[Constraint]] = OrderedDict()
        self._threads = started(_THREADS, "baton-grammar")

    def compile(self, form: OutputFormat) -> Constraint:
        """Compiles a form.

        Raises InvalidValue if the form cannot be honoured, LimitExceeded if that takes too long to find out, QueueFull
        if too many are being compiled, and Unsupported if this model's answers cannot be given forms.
        """
        vocabulary = self._tokens()
        future = self._future(form, vocabulary)
        seconds = self._limits.grammar_timeout
        try:
            return future.result(seconds)
        except Late:
            if not future.running() and not future.done():
                raise QueueFull("others' schemas and grammars are being compiled: try again") from None
            message = f"compiling this {form.kind} takes longer than {seconds:g} s ({flag_of('grammar_timeout')})"
            raise LimitExceeded(message, param=form.param) from None

    def prepare(self) -> None:
        """Does now what would delay everybody at the first form, because it holds Python's lock."""
        with contextlib.suppress(RequestError):  # reported to requests with a form
            self._tokens()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _future(self, form: OutputFormat, vocabulary: Vocabulary) -> Future[Constraint]:
        """The future that compiles or has compiled this form; failures are remembered too."""
        with self._lock:
            compiling = self._compiled.get(form)
            if compiling is None:
                waiting = sum(not future.done() for future in self._compiled.values())
                if waiting >= self._limits.max_compiling:
                    raise QueueFull(f"{waiting} schemas and grammars are being compiled ({flag_of('max_compiling')})")
                compiling = self._compiled[form] = self._threads.submit(self._compile, form, vocabulary)
            self._compiled.move_to_end(form)
            while len(self._compiled) > _KEPT and (old := next(iter(self._compiled.items())))[1].done():
                del self._compiled[old[0]]
            return compiling

    def _tokens(self) -> Vocabulary:
        """Made when first needed: for a large vocabulary it takes a second."""
        with self._making:
            if self._made is None:
                self._made = self._vocabulary()
            return self._made


def _vocabulary(words: Words, end_ids: Sequence[int]) -> Vocabulary:
    if not available():
        message = "answers cannot be given a form here: pip install llguidance"
        raise Unsupported(message)
    return Vocabulary(words.backend(), words.vocabulary, end_ids)
