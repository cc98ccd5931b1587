"""Answers of gpt-oss: messages on channels (harmony). Analysis is reasoning, commentary to a function is its call."""

from __future__ import annotations

import re

from baton.parsing.calls import CallParser
from baton.parsing.deltas import Reasoning, Text
from baton.parsing.scanner import Steps

CHANNEL, MESSAGE = "<|channel|>", "<|message|>"
START, CONSTRAIN = "<|start|>", "<|constrain|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
TAGS = (CHANNEL, MESSAGE, START, CONSTRAIN, *_ENDS)
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.\-]+)")
_MOST_HEADER = 512


class Harmony(CallParser):
    """Reads the whole answer, with or without tools. Without a header, text is text."""

    reasons = True
    tells_reasoning = True

    def read(self) -> Steps:
        scanner = self.scanner
        while True:
            # Between messages; text without a header, such as an answer with a form, is text.
            tag = yield from scanner.until((CHANNEL, START, MESSAGE), self.say)
            if not tag:
                return
            header = [tag]
            if tag != MESSAGE and not (yield from scanner.until((MESSAGE,), header.append)):
                if not self._forced:
                    self.say("".join(header[1:]) if len("".join(header)) > _MOST_HEADER else "")
                return
            yield from self._message("".join(header))

    def _message(self, header: str) -> Steps:
        recipient = _RECIPIENT.search(header)
        if recipient is not None and self.start(recipient[1]):
            yield from self.scanner.until(_ENDS, self.argue, keep_cut=False)
        elif "analysis" in header:
            self.reasoning = True
            yield from self.scanner.until(_ENDS, self._think)
            self.reasoning = False
        else:
            yield from self.scanner.until(_ENDS, self.say)

    def _think(self, text: str) -> None:
        self.scanner.out.append(Reasoning(text) if self.tells_reasoning else Text(text))
