"""One query's way through engines: what its asker was told, and where it is now. Knows no transport."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from baton.core.events import Update, Usage
from baton.core.query import Query
from baton.engine.inbox import Deliver


@dataclass(slots=True)
class Follow:
    """A query that a front asks of engines, one after the other.

    `engine`: where it is; None while it is on no engine. `attempt`: counts where it was. `taken`: it has come there.
    `losses`: engines that were lost with it on board. `missed`: engines that were lost before it had come to them.
    `laid_down`: where the engine that it left has laid down its keys and values.
    """

    query: Query
    deliver: Deliver
    engine: str | None = None
    attempt: int = 0
    taken: bool = False
    losses: int = 0
    missed: int = 0
    tokens: list[int] = field(default_factory=list)
    spent: Usage | None = None
    laid_down: Any = None

    @property
    def tokens_left(self) -> int:
        """Tokens that it may still have computed: of its prompt, of what was told, and of the rest of its answer."""
        return len(self.query.prompt) + self.query.limit_tokens

    @property
    def tokens_held(self) -> int:
        """Tokens whose keys and values its engine may have: of its prompt, and of what was told."""
        return len(self.query.prompt) + len(self.tokens)

    def goes_to(self, engine: str) -> Any:
        """Returns where its keys and values are; None if all is to be computed again."""
        self.engine = engine
        self.attempt += 1
        self.taken = False
        where, self.laid_down = self.laid_down, None
        return where

    def take(self, engine: str, attempt: int, update: Update, laid_down: Any = None) -> tuple[Update | None, bool]:
        """Returns what its asker is told of an update, and whether it must be asked of another engine.

        Updates of an attempt that is over are nobody's. `laid_down`: where its keys and values are, if it moves.
        """
        if engine != self.engine or attempt != self.attempt:
            return None, False
        self.taken = True
        self.tokens += update.token_ids
        if update.finish_reason != "moved":
            if update.usage is not None and self.spent is not None:
                update = replace(update, usage=update.usage.after(self.spent))
            return update, False
        if update.usage is not None:
            self.spent = update.usage if self.spent is None else update.usage.after(self.spent)
        self.engine = None
        self.laid_down = laid_down
        left = replace(update, finish_reason=None, error=None, usage=None)
        return (left if left.token_ids or left.text else None), True

    def lost(self, engine: str, *, counts: bool = True) -> bool:
        """Its engine may be lost. Returns whether it was on board. `counts`: it may be what ended the engine."""
        if engine != self.engine:
            return False
        self.engine = None
        self.losses += counts and self.taken
        self.missed += counts and not self.taken
        return True
