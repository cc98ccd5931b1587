"""Chat templates: the model's own, in jinja's immutable sandbox, within a time and a size."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

from jinja2 import Template, meta, nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

from baton.core.errors import InvalidValue
from baton.core.limits import Limits
from baton.core.template_options import NO_TEMPLATE_OPTIONS, TemplateOptions
from baton.core.text import PartedText
from baton.model.conversation import is_none, rendered
from baton.model.sandbox import Sandbox, Watch, hooked


class ChatTemplate:
    """A template's source, compiled. Safe to call from any thread.

    `takes_tools`: whether it mentions tools. `variables`: the names that it reads. `looks_for`: the texts that it looks
    for in others. Raises jinja2.TemplateError if the source is invalid.
    """

    def __init__(self, source: str, limits: Limits) -> None:
        self._compiled = _compiled(source)
        self.takes_tools = "tools" in self._compiled.variables
        self.variables = self._compiled.variables
        self.looks_for = self._compiled.looks_for
        self._limits = limits

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        special_tokens: Mapping[str, Any],
        options: TemplateOptions = NO_TEMPLATE_OPTIONS,
    ) -> str:
        """Renders as transformers' `apply_chat_template` does.

        Raises LimitExceeded; InvalidValue if no message is in the prompt, or if the last message cannot be continued;
        and what the template raises.
        """
        until = time.monotonic() + self._limits.template_timeout
        # A request's variable is never taken for a special token's name.
        given = {
            **options.variables,
            **special_tokens,
            "tools": list(tools) or None,
            "documents": list(options.documents) or None,
            "add_generation_prompt": options.generation_prompt and not options.continue_final,
        }
        mark = ""
        if options.continue_final:
            mark = secrets.token_hex(16)
            messages = [*messages[:-1], _marked(messages[-1], mark)]

        def write(turns: Sequence[Mapping[str, Any]]) -> str:
            return self._write({**given, "messages": turns}, until)

        known = self._compiled
        text = rendered(
            messages, write, reads_words=known.reads_words, takes_parts=known.takes_parts, proved=known.proved
        )
        if mark and mark not in text:
            message = "continue_final_message: the chat template leaves out the last message"
            raise InvalidValue(message, param="continue_final_message")
        return text[: text.rindex(mark)] if mark else text

    def _write(self, variables: Mapping[str, Any], until: float) -> str:
        watch = Watch(self._limits, until)
        sandbox = self._compiled.sandbox.watched(watch)
        template: Template = Template.from_code(sandbox, self._compiled.code, sandbox.make_globals(None))
        pieces = template.generate(
            {
                **variables,
                **watch.hooks(),
            }
        )
        return "".join(map(watch.written, pieces))


class _Compiled(NamedTuple):
    """`reads_words`: it loops over messages and reads their content. `takes_parts`: it knows texts in parts.

    `proved`: see `conversation.rendered`.
    """

    sandbox: Sandbox
    code: CodeType
    variables: frozenset[str]
    reads_words: bool
    takes_parts: bool
    proved: set[str]
    looks_for: frozenset[str]


@lru_cache(maxsize=8)
def _compiled(source: str) -> _Compiled:
    # Only its filters and globals: the stock environment would compute constants at compile time.
    stock = _compile_jinja_template("").environment
    sandbox = Sandbox(
        trim_blocks=stock.trim_blocks,
        lstrip_blocks=stock.lstrip_blocks,
        extensions=[type(one) for one in stock.extensions.values()],
    )
    sandbox.take(stock)
    sandbox.tests["none"] = is_none
    tree = sandbox.parse(source)
    variables = frozenset(meta.find_undeclared_variables(tree))
    constants = [node.value for node in tree.find_all(nodes.Const)]
    names = {node.attr for node in tree.find_all(nodes.Getattr)} | {one for one in constants if isinstance(one, str)}
    looks_for = frozenset(_looked_for(tree))
    reads_words = "content" in names and tree.find(nodes.For) is not None
    return _Compiled(sandbox, sandbox.compile(hooked(tree)), variables, reads_words, "text" in names, set(), looks_for)


def _marked(message: Mapping[str, Any], mark: str) -> Mapping[str, Any]:
    """A message with a mark after its words."""
    content = message.get("content")
    if isinstance(content, PartedText):
        content = PartedText([*content.parts[:-1], content.parts[-1] + mark])
    elif isinstance(content, str):
        content += mark
    else:
        raise InvalidValue("continue_final_message needs a text in the last message", param="continue_final_message")
    return {**message, "content": content}


def _looked_for(tree: nodes.Template) -> Iterator[str]:
    """Texts that are compared with others, or passed to their methods, to filters and tests."""
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
        if isinstance(node, nodes.Compare):
            asked: Sequence[nodes.Node] = [node]
        else:
            is_function = isinstance(node, nodes.Call) and not isinstance(node.node, (nodes.Getattr, nodes.Getitem))
            asked = [] if is_function else node.args  # type: ignore[attr-defined]
        for one in asked:
            constants = [one] if isinstance(one, nodes.Const) else one.find_all(nodes.Const)
            yield from (constant.value for constant in constants if isinstance(constant.value, str))
