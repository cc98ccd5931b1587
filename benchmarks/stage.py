"""What the figures of the engine stand on: one loaded model, engines on it in this thread, and what their clients hear.

Without HTTP and without a second thread, so that the clock shows the engine alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from baton.bench.drive import Response
from baton.builtin import tasks
from baton.compose import make_engine, open_model
from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.events import Sink, Update
from baton.core.query import Query, SamplingParams
from baton.core.settings import Settings, resolve
from baton.loader.facts import facts_of
from baton.loader.loaded import Loaded
from baton.policy.port import traits
from baton.policy.table import POLICIES, policy_named


class Stage:
    """An engine in this thread; `turn` is one iteration. `answers` by name; `heard` gets the number of new tokens."""

    def __init__(
        self,
        loaded: Loaded,
        settings: Settings,
        policy: str,
        sinks: Sequence[Sink] = (),
        heard: Callable[[int], object] = lambda tokens: None,
    ) -> None:
        self.engine = make_engine(loaded, settings, POLICIES[policy](), sinks)
        self.answers: dict[str, Response] = {}
        self._heard = heard

    def ask(self, name: str, prompt: Sequence[int], tokens: int, *, priority: int = 0) -> Response:
        """A greedy query for exactly so many tokens comes in."""
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        query = Query(
            id=name,
            prompt=tuple(prompt),
            params=params,
            seed=0,
            limit_tokens=tokens,
            arrived=monotonic(),
            priority=priority,
        )
        self.answers[name] = Response(query.arrived)
        self.engine.accept(query, self._hear)
        return self.answers[name]

    def turn(self) -> None:
        self.engine.iterate()
        self.engine.flush()

    def finish(self) -> None:
        """Until nothing is left to do."""
        while self.engine.busy:
            self.turn()

    def _hear(self, updates: list[Update]) -> None:
        now = monotonic()
        for update in updates:
            if update.error is not None:
                raise RuntimeError(f"query {update.query_id} failed: {update.error}")
            answer = self.answers[update.query_id]
            answer.tokens += update.token_ids
            answer.times += [now] * len(update.token_ids)
            answer.text += update.text
            answer.usage = update.usage
        self._heard(sum(len(update.token_ids) for update in updates))


def load(config: Config, before: Callable[[PreTrainedModel], None] | None = None) -> tuple[Loaded, Settings]:
    """The model, and what these settings are on this machine. `before` gets the model while it is stock."""
    loaded = open_model(config, before=before)
    return loaded, resolve(config, facts_of(loaded), traits(policy_named(config.policy)))


def known_text() -> str:
    """Enough text for any prompt, of a kind that the built-in model knows: questions, one after the other."""
    lines = [question.text for task in tasks.CHECKABLE_TASKS for question in tasks.questions(task, 60, seed=5)]
    return "\n".join(lines * 4)


def prompts(loaded: Loaded, lengths: Sequence[int], dice: random.Random) -> list[list[int]]:
    """Prompts of these many tokens, each from another place of the known text."""
    ids = loaded.tokenizer.encode(known_text())
    starts = [dice.randrange(len(ids) - length) for length in lengths]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]
