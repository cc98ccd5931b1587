"""Calls with their name before a JSON object of arguments: DeepSeek, Kimi, Mistral."""

from __future__ import annotations

import re
from collections.abc import Sequence

from baton.parsing.calls import CallParser, Reading
from baton.parsing.json_calls import call_objects
from baton.parsing.scanner import Steps

# Before the arguments there are only a name and tags.
_MOST_HEADER = 512


class Named(CallParser):
    """`sections`: tags around all calls, which are not text. `closing`: "" if nothing closes a call."""

    opening: str
    closing: str
    sections: Sequence[str] = ()
    name: re.Pattern[str]

    def read(self) -> Steps:
        while True:
            tag = yield from self.scanner.until((self.opening, *self.sections), self.say)
            if not tag:
                return
            if tag == self.opening:
                yield from self.try_call(self.inside(), tag, self.closing)
            yield from self._skip_to_next()

    def inside(self) -> Reading:
        header: list[str] = []
        stops = [stop for stop in ("{", self.closing, self.opening) if stop]
        stop = yield from self.scanner.until(stops, header.append, read_tag=False)
        text = "".join(header)
        match = self.name.search(text) if len(text) <= _MOST_HEADER else None
        # A call of a function without arguments may end after its name; but a name that is cut off is no name.
        if match is None or not stop or not self.start(match["name"].strip()):
            return False
        if stop == "{":
            yield from self.scanner.json(self.argue)
        else:
            self.argue("{}")
        return True

    def _skip_to_next(self) -> Steps:
        """Skips blanks between calls and tags."""
        if not self.calls or not self.sections:
            return
        blanks = yield from self.scanner.blanks()
        while (yield from self.scanner.tag(*self.sections)):
            blanks = yield from self.scanner.blanks()
        self.say(blanks)


class DeepSeek(Named):
    """V3 and R1 write the arguments as a block of code, V3.1 writes them plainly."""

    opening = "<｜tool▁call▁begin｜>"
    closing = "<｜tool▁call▁end｜>"
    sections = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
    separator = "<｜tool▁sep｜>"
    name = re.compile(rf"^\s*(?:function{separator})?(?P<name>[^\s<`]+)\s*(?:{separator}|\n|```|$)")

    def inside(self) -> Reading:
        complete = yield from super().inside()
        if complete:
            # The block's end.
            yield from self.scanner.matching(_FENCE)
        return complete


class Kimi(Named):
    """The name stands between "functions." and a number."""

    opening = "<|tool_call_begin|>"
    closing = "<|tool_call_end|>"
    sections = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
    name = re.compile(r"^\s*(?:functions\.)?(?P<name>[^\s<:]+?)(?::\d+)?\s*(?:<\|tool_call_argument_begin\|>|$)")


class Mistral(Named):
    """A list of objects; from version 11 of the tokenizer on, a name and its arguments."""

    opening = "[TOOL_CALLS]"
    closing = ""
    name = re.compile(r"^\s*(?P<name>[^\s\[{]+)\s*(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\]|$)")

    def inside(self) -> Reading:
        yield from self.scanner.blanks()
        if (yield from self.scanner.peek()) in ("[", "{"):
            complete = yield from call_objects(self)
            yield from self.scanner.matching(_LIST_END)
            return complete
        return (yield from super().inside())


_FENCE = re.compile(r"[\s`]*")
_LIST_END = re.compile(r"[\s\]]*")
