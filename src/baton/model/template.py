"""Chat templates: the model's own, in jinja's immutable sandbox, within a time and a size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

from jinja2 import Template, meta
from transformers.utils.chat_template_utils import _compile_jinja_template

from baton.limits import Limits
from baton.model.sandbox import Sandbox, Watch, hooked


class ChatTemplate:
    """A template's source, compiled. Safe to call from any thread.

    `takes_tools`: whether it says anything of tools. Raises jinja2.TemplateError where the source is none.
    """

    def __init__(self, source: str, limits: Limits) -> None:
        self._sandbox, self._code, self.takes_tools = _compiled(source)
        self._limits = limits

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        special_tokens: Mapping[str, Any],
    ) -> str:
        """As transformers' `apply_chat_template` does. Raises LimitExceeded, and what the template raises."""
        watch = Watch(self._limits)
        sandbox = self._sandbox.watched(watch)
        template: Template = Template.from_code(sandbox, self._code, sandbox.make_globals(None))
        # As transformers does: templates handle what is missing, and not what is null.
        turns = [{name: value for name, value in message.items() if value is not None} for message in messages]
        pieces = template.generate(
            {
                **special_tokens,
                "messages": turns,
                "tools": list(tools) or None,
                "documents": None,
                "add_generation_prompt": True,
                **watch.hooks(),
            }
        )
        return "".join(map(watch.written, pieces))


@lru_cache(maxsize=8)
def _compiled(source: str) -> tuple[Sandbox, CodeType, bool]:
    # Its filters and globals alone: the stock environment would compute what is constant while it compiles.
    stock = _compile_jinja_template("").environment
    sandbox = Sandbox(
        trim_blocks=stock.trim_blocks,
        lstrip_blocks=stock.lstrip_blocks,
        extensions=[type(one) for one in stock.extensions.values()],
    )
    sandbox.take(stock)
    tree = sandbox.parse(source)
    takes_tools = "tools" in meta.find_undeclared_variables(tree)
    return sandbox, sandbox.compile(hooked(tree)), takes_tools
