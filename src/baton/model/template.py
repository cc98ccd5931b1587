"""Chat templates: the model's own, in jinja's immutable sandbox, within a time and a size.

Jinja bounds neither. So every loop and macro of a template gets a first statement that looks at the clock, what it
writes is counted while it does, and so are the texts and lists that its operators make. What is left are single calls
of filters, over ranges that the sandbox bounds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template

from baton.limits import LimitExceeded, Limits, exceeded, flag_of

_LOOK, _HELD = "__baton_look", "__baton_held"
_MOST_BITS = 4096
_DIGITS = re.compile(r"\d+")


class ChatTemplate:
    """A template's source, compiled. Safe to call from any thread.

    `takes_tools`: whether it says anything of tools. Raises jinja2.TemplateError where the source is none.
    """

    def __init__(self, source: str, limits: Limits) -> None:
        self._template, self.takes_tools = _compiled(source)
        self._limits = limits

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        special_tokens: Mapping[str, Any],
    ) -> str:
        """As transformers' `apply_chat_template` does. Raises LimitExceeded, and what the template raises."""
        watch = _Watch(self._limits)
        # As transformers does: templates handle what is missing, and not what is null.
        turns = [{name: value for name, value in message.items() if value is not None} for message in messages]
        pieces = self._template.generate(
            {
                **special_tokens,
                "messages": turns,
                "tools": list(tools) or None,
                "documents": None,
                "add_generation_prompt": True,
                _LOOK: watch.look,
                _HELD: watch.held,
            }
        )
        return "".join(map(watch.written, pieces))


class _Watch:
    """One rendering: how long it took, and how much it wrote."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._until = time.monotonic() + limits.template_timeout
        self._bytes = 0

    def look(self) -> None:
        if time.monotonic() > self._until:
            seconds = self._limits.template_timeout
            message = f"the chat template takes longer than {seconds:g} s ({flag_of('template_timeout')})"
            raise LimitExceeded(message, param="messages")

    def written(self, piece: str) -> str:
        self.look()
        self._bytes += len(piece.encode(errors="replace"))
        self.fits(self._bytes)
        return piece

    def held(self, value: Any) -> Any:
        if hasattr(value, "__len__"):
            self.fits(len(value))
        return value

    def fits(self, size: int) -> None:
        most = self._limits.max_template_bytes
        if size > most:
            message = exceeded("max_template_bytes", most, size, "what the chat template writes, or more,")
            raise LimitExceeded(message, param="messages")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with operators that make nothing above the limits."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        watch: _Watch = context[_HELD].__self__
        if isinstance(left, int) and isinstance(right, int):
            bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * abs(right)}
            if bits.get(operator, 0) > _MOST_BITS:
                raise TemplateError(f"the chat template computes a number of more than {_MOST_BITS} bits")
        for items, times in ((left, right), (right, left)):
            if operator == "*" and isinstance(times, int) and hasattr(items, "__len__"):
                watch.fits(len(items) * times)
        if operator == "%" and isinstance(left, str):
            watch.fits(sum(map(int, _DIGITS.findall(left))))
            if "*" in left:
                raise TemplateError("the chat template formats to a width that it computes")
        return watch.held(super().call_binop(context, operator, left, right))


@lru_cache(maxsize=8)
def _compiled(source: str) -> tuple[Template, bool]:
    if _LOOK in source or _HELD in source:
        raise TemplateError(f"a chat template has no business with {_LOOK} and {_HELD}")
    # Its filters and globals alone: the stock environment would compute what is constant while it compiles.
    stock = _compile_jinja_template("").environment
    environment = _Environment(
        trim_blocks=stock.trim_blocks,
        lstrip_blocks=stock.lstrip_blocks,
        extensions=[type(one) for one in stock.extensions.values()],
    )
    environment.filters.update(stock.filters)
    environment.globals.update(stock.globals)
    tree = environment.parse(source)
    takes_tools = "tools" in meta.find_undeclared_variables(tree)
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        body: list[nodes.Node] = node.body  # type: ignore[attr-defined]
        body.insert(0, nodes.ExprStmt(_call(_LOOK)).set_lineno(node.lineno))
    return environment.from_string(_joins_held(tree)), takes_tools


def _joins_held(node: Any) -> Any:
    """The same tree, where each text that `~` joins is looked at."""
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_joins_held(one) if isinstance(one, nodes.Node) else one for one in value])
        elif isinstance(value, nodes.Node):
            setattr(node, name, _joins_held(value))
    return _call(_HELD, node).set_lineno(node.lineno) if isinstance(node, nodes.Concat) else node


def _call(name: str, *given: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), list(given), [], None, None)
