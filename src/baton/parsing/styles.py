"""How models write tool calls, and which of these ways a chat template has its model write."""

from __future__ import annotations

from dataclasses import dataclass

from baton.parsing.calls import ParserOf
from baton.parsing.json_calls import Bare, Tagged


@dataclass(frozen=True, slots=True)
class Style:
    """`parser` reads the calls. `tags`: what it must see in the text, even if a tag is a special token.

    For a grammar: between which tags a call stands, and under which name its arguments. `closing` is "" where nothing
    closes a call; then it may stand without the opening tag, at the beginning of an answer.
    """

    name: str
    parser: ParserOf
    opening: str
    closing: str
    arguments: str

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(tag for tag in (self.opening, self.closing) if tag)


HERMES = Style("hermes", Tagged, Tagged.opening, Tagged.closing, "arguments")
LLAMA = Style("llama", Bare, Bare.opening, "", "parameters")
# Another way to write arguments between the same tags.
_OTHER_TAGGED = "<function="


def style_of(template: str) -> Style | None:
    """How a model writes calls, as its chat template shows it; None for a way that is not known."""
    if HERMES.opening in template:
        return None if _OTHER_TAGGED in template else HERMES
    return LLAMA if LLAMA.opening in template or '"parameters": ' in template else None
