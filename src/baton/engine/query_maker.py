"""Makes queries of prompts: checks them, and gives each its id, its seed, its user and its space of prefixes."""

from __future__ import annotations

import hashlib
import itertools
import operator
import random
import secrets
import threading
from collections.abc import Collection, Sequence

from baton.core.clock import Clock
from baton.core.config import SHARE_BY_KEY, SHARE_BY_SALT
from baton.core.constraint import Constraint, OutputFormat
from baton.core.errors import ContextLengthExceeded, InvalidValue, RequestError, Unsupported, quoted
from baton.core.query import Query, RequestOptions, SamplingParams
from baton.core.settings import Settings
from baton.engine.port import Compiler


class QueryMaker:
    """May be called from any thread. See `Client.queries` for what is raised."""

    def __init__(
        self,
        settings: Settings,
        vocabulary: int,
        clock: Clock,
        honours: frozenset[str],
        compiler: Compiler | None,
    ) -> None:
        self.settings = settings
        self._vocabulary = vocabulary
        self._clock = clock
        self._honours = honours
        self._compiler = compiler
        self._names = itertools.count()
        self._prefix = secrets.token_hex(8)
        self._spaces = secrets.token_bytes(16)
        self._seeds = random.Random(settings.seed)
        self._lock = threading.Lock()

    def queries(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        options: RequestOptions,
        *,
        form: OutputFormat | None,
        visible_special_tokens: Collection[int],
    ) -> list[Query]:
        """See `Client.queries`."""
        try:
            tokens = tuple(operator.index(token) for token in prompt)
        except TypeError:
            raise InvalidValue("the prompt must be a list of token ids", param="prompt") from None
        if options.priority and "priority" not in self._honours:
            message = (
                f"priority {options.priority}: this engine's policy has no priorities; --policy priority and slo do"
            )
            raise Unsupported(message, param="priority")
        self.settings.limits.check(params)
        self._check(tokens, params)
        form = form or params.form
        constraint = None if form is None else self.compile(form)
        now = self._clock()
        room = self.settings.max_model_len - len(tokens)
        limit = min(room, params.max_tokens or room)
        with self._lock:
            first = self._seeds.getrandbits(63) if params.seed is None else params.seed
            names = [f"{self._prefix}-{next(self._names)}" for _ in range(params.n)]
        space = self._prefix_space(options)
        # The prompt's log-probabilities are only known if it is computed.
        shared = params.n > 1 and self.settings.prefix_cache and params.prompt_logprobs is None
        return [
            Query(
                id=name,
                prompt=tokens,
                params=params,
                seed=first + choice,
                limit_tokens=limit,
                arrived=now,
                priority=options.priority,
                deadline=None if options.deadline_ms is None else now + options.deadline_ms / 1000,
                user=self._user(options),
                sibling_of=names[0] if shared else "",
                start_by=None if options.queue_seconds is None else now + options.queue_seconds,
                end_by=None if options.total_seconds is None else now + options.total_seconds,
                constraint=constraint,
                form=form,
                visible_special_tokens=frozenset(visible_special_tokens),
                prefix_space=space,
                origin=options.origin,
            )
            for choice, name in enumerate(names)
        ]

    def compile(self, form: OutputFormat) -> Constraint:
        """See `Client.compile`."""
        size = len(form.text.encode())
        self.settings.limits.hold("max_grammar_bytes", size, f"the size of the {form.kind}", form.param)
        if self._compiler is None:
            raise Unsupported(f"{form.param} is not honoured by this engine", param=form.param)
        try:
            return self._compiler.compile(form)
        except RequestError as error:
            error.param = error.param or form.param
            raise

    def _prefix_space(self, options: RequestOptions) -> str | None:
        """The space in which a query shares stored prefixes; see `Query`."""
        sharing, salt = self.settings.prefix_sharing, options.cache_salt
        if sharing == SHARE_BY_SALT and salt is None:
            return None
        key = options.key if sharing == SHARE_BY_KEY else ""
        if not key and salt is None:
            return ""
        # A digest under a secret of this process, so that neither a key nor a salt is in what is stored.
        whose = f"{key}\0{salt or ''}".encode(errors="surrogatepass")
        return hashlib.blake2b(whose, key=self._spaces, digest_size=16).hexdigest()

    def _user(self, options: RequestOptions) -> str:
        """Whose share of the rows a query takes. With keys, a name counts only together with its key."""
        if self.settings.has_keys and options.user:
            return f"{options.key}:{options.user}"
        return options.user or options.key

    def _check(self, tokens: tuple[int, ...], params: SamplingParams) -> None:
        longest = self.settings.max_model_len
        if not tokens:
            raise InvalidValue("the prompt has no tokens", param="prompt")
        if not all(0 <= token < self._vocabulary for token in tokens):
            message = f"the prompt has token ids outside the vocabulary of {self._vocabulary}"
            raise InvalidValue(message, param="prompt")
        wanted = params.max_tokens or 1
        if len(tokens) + wanted > longest:
            message = (
                f"the prompt has {len(tokens)} tokens and max_tokens is {wanted}, together more than "
                f"the context of {longest} tokens (--max-model-len)"
            )
            raise ContextLengthExceeded(message, param="prompt")
        for name, ids in (("logit_bias", params.logit_bias or {}), ("stop_token_ids", params.stop_token_ids)):
            outside = [token for token in ids if not 0 <= token < self._vocabulary]
            if outside:
                message = f"{name} has token {quoted(outside[0])}, the vocabulary has {self._vocabulary}"
                raise InvalidValue(message, param=name)
