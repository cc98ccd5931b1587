"""The longest text that a model was made for, from its config alone, and where the number comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

DEFAULT_TOKENS = 2048

# Different families have different names for it in their configs.
_NAMES = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    *("n_ctx", "max_sequence_length", "max_seq_length", "seq_len"),
)
# These types of rope extend the context by their factor. With longrope, llama3 and others, the config's number is
# already that of the longer context.
_STRETCHING = ("yarn", "linear", "dynamic")


@dataclass(frozen=True, slots=True)
class Context:
    """`source`: where the number comes from, for people.

    Not `bounded`: no limit is known, and any number may be asked for.
    """

    tokens: int
    source: str
    bounded: bool = True

    def asked(self, tokens: int) -> int:
        """Returns the context if so many tokens are asked for: that number if nothing bounds it, else unchanged."""
        return self.tokens if self.bounded else max(self.tokens, tokens)


def context(config: Any) -> Context:
    """The longest of: a number in the config, or the rope's factor times the original context."""
    text = config.get_text_config()
    named = next(((name, number) for name in _NAMES if _is_length(number := getattr(text, name, None))), None)
    if named is None:
        return Context(DEFAULT_TOKENS, "no number in its config; --max-model-len takes any", bounded=False)
    plain = Context(named[1], f"{named[0]} in its config")
    return max([plain, *_stretched(text, plain.tokens)], key=lambda one: one.tokens)


def _stretched(text: Any, plain: int) -> Iterator[Context]:
    rope = getattr(text, "rope_parameters", None) or {}
    # One table for each layer type, or one for all.
    tables = [table for table in rope.values() if isinstance(table, dict)]
    for table in tables or [rope]:
        factor, original = table.get("factor"), table.get("original_max_position_embeddings")
        if not tables:
            # If only some layer types are scaled (Gemma 3), the config's number is that of the longer context.
            original = original or plain
        if table.get("rope_type") in _STRETCHING and isinstance(factor, (int, float)) and _is_length(original):
            yield Context(int(factor * original), f"rope {table['rope_type']}: {factor:g} times {original:,} tokens")


def _is_length(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0
