"""Jinja's immutable sandbox, within a time and a size.

Jinja bounds neither. Every loop and macro of a template gets a first statement that checks the clock. Before anything
makes a text, a list or a number, the size of the result is computed (`sizes.py`), and no single one may exceed the
limit; the sum of all that a rendering makes may be a multiple of it. So no single call takes long either, which matters
because a thread inside one lets no other thread run.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, _PassArg
from markupsafe import EscapeFormatter, Markup

from baton.core.limits import LimitExceeded, Limits, exceeded, flag_of
from baton.model import sizes
from baton.model.sizes import ELEMENT

CHECK_TIME = "__baton_check_time"
_HELD, _SLICED, _JOINED = "__baton_held", "__baton_sliced", "__baton_joined"
HOOKS = (CHECK_TIME, _HELD, _SLICED, _JOINED)
"""Names of functions that are called in templates without being written there."""

# The most that a rendering makes in all, as a multiple of what it may write. Templates that build their text turn by
# turn make half of it for each turn.
_IN_ALL = 32
# Methods that return what exists already.
_HANDING = frozenset({"get", "items", "keys", "values"})


class Watch:
    """One rendering: how long it took, how much it wrote, and how much it made."""

    def __init__(self, limits: Limits, until: float) -> None:
        """`until`: when it must be done, by the clock of `time.monotonic`."""
        self._limits = limits
        self._until = until
        self._bytes = 0
        self._made = 0

    def check_time(self) -> None:
        """Raises LimitExceeded if it takes too long."""
        if time.monotonic() > self._until:
            seconds = self._limits.template_timeout
            message = f"the chat template takes longer than {seconds:g} s ({flag_of('template_timeout')})"
            raise LimitExceeded(message, param="messages")

    def written(self, piece: str) -> str:
        self.check_time()
        self._bytes += len(piece.encode(errors="replace"))
        self.fits(self._bytes)
        return piece

    def fits(self, size: int) -> None:
        """Raises LimitExceeded if no single text or list may have this size."""
        self._check(size, self._limits.max_template_bytes)

    def made(self, size: int) -> None:
        self._made += size
        self._check(self._made, _IN_ALL * self._limits.max_template_bytes)

    def weigh(self, value: Any, **more: int) -> int:
        return sizes.weight(value, self.fits, **more)

    def held(self, value: Any) -> Any:
        """Counts a new value, which must fit."""
        self.made(self.weigh(value))
        return value

    def sliced(self, value: Any) -> Any:
        """Counts a part of an existing value."""
        if hasattr(value, "__len__"):
            self.made(len(value) * (1 if isinstance(value, (str, bytes)) else ELEMENT))
        return value

    def joined(self, *parts: Any) -> str:
        """The texts that `~` joins."""
        return self.concat([part if isinstance(part, str) else str(part) for part in parts])

    def concat(self, pieces: Iterable[str]) -> str:
        listed = list(pieces)
        size = sum(map(len, listed))
        self.fits(size)
        self.made(size)
        return "".join(listed)

    def through(self, items: Iterable[Any]) -> Iterator[Any]:
        """The same items, each counted before it is used."""
        for count, item in enumerate(items, 1):
            self.check_time()
            self.fits(count * ELEMENT)
            self.made(ELEMENT)
            yield item

    def hooks(self) -> Mapping[str, Callable[..., Any]]:
        return {CHECK_TIME: self.check_time, _HELD: self.held, _SLICED: self.sliced, _JOINED: self.joined}

    def _check(self, size: int, most: int) -> None:
        if size > most:
            limit = self._limits.max_template_bytes
            message = exceeded("max_template_bytes", limit, size, "what the chat template writes, or more,")
            raise LimitExceeded(message, param="messages")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering, or, without a watch, of one template."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    watch: Watch

    def watched(self, watch: Watch) -> Sandbox:
        """The same environment for one rendering."""
        sandbox: Sandbox = self.overlay()
        sandbox.watch = watch
        sandbox.concat = watch.concat  # type: ignore[method-assign]
        return sandbox

    def take(self, stock: ImmutableSandboxedEnvironment) -> None:
        """Filters and globals of another environment, within bounds."""
        self.filters.update({name: _bounded(name, made) for name, made in stock.filters.items()})
        self.filters |= {"join": _join, "sum": _sum}
        self.globals.update(stock.globals)
        # No prompt needs it.
        self.globals.pop("lipsum", None)
        self.globals["namespace"] = _opaque(stock.globals["namespace"])  # type: ignore[arg-type]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.watch.check_time()
        if isinstance(left, int) and isinstance(right, int):
            sizes.of_number_operator(operator, left, right)
        elif operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(items, "__len__"):
                    self.watch.fits(self.watch.weigh(items) * times)
        elif operator == "+" and isinstance(left, (str, bytes)) and isinstance(right, (str, bytes)):
            self.watch.fits(len(left) + len(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            self.watch.fits(sizes.of_printf(self.watch.weigh, left, right))
        return self.watch.held(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(__obj, "__self__", None) is __self.watch:
            return __obj(*args)
        watch, name, owner = __self.watch, getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        watch.check_time()
        if isinstance(owner, (str, bytes, int)):
            if name == "join" and len(args) == 1:
                items = list(watch.through(args[0]))
                watch.fits(watch.weigh(items) + len(owner) * len(items))  # type: ignore[arg-type]
                args = (items,)
            elif name in sizes.METHODS:
                # Arguments that jinja adds in a loop are only for functions that take the context.
                given = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}
                watch.fits(sizes.METHODS[name](watch.weigh, owner, *args, **given))
        elif name == "strftime_now":
            watch.fits(watch.weigh(args) * ELEMENT)
        result = super().call(__context, __obj, *args, **kwargs)
        return result if name in _HANDING and isinstance(owner, Mapping) else watch.held(result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        kinds = (types.MethodType, types.BuiltinMethodType)
        if not isinstance(value, kinds) or value.__name__ not in ("format", "format_map"):
            return None
        text = value.__self__
        if not isinstance(text, str):
            return None
        formatter = _EscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else _Formatter(self)

        def formatted(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format":
                return type(text)(formatter.vformat(text, args, kwargs))
            (mapping,) = args
            return type(text)(formatter.vformat(text, (), mapping))

        return formatted


class _Formatter(SandboxedFormatter):
    """`str.format`, field by field."""

    def __init__(self, environment: Sandbox, **more: Any) -> None:
        super().__init__(environment, **more)
        self._watch = environment.watch
        self._size = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._watch.fits(sizes.of_conversion(self._watch.weigh, value, conversion))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        self._watch.check_time()
        self._watch.fits(sizes.of_field(self._watch.weigh, value, format_spec))
        text: str = super().format_field(value, format_spec)
        self._size += len(text)
        self._watch.fits(self._size)
        return text


class _EscapeFormatter(_Formatter, EscapeFormatter):
    pass


def _bounded(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with a check of how much it would make. An iterator's items are counted as they come.

    It takes the context, so that jinja does not compute it at compile time if its value is constant.
    """
    passed = _PassArg.from_obj(made)
    rule = sizes.FILTERS.get(name)

    @pass_context
    def bounded(context: Context, *args: Any, **kwargs: Any) -> Any:
        watch = _watch_of(context)
        watch.check_time()
        if rule is not None:
            watch.fits(rule(watch.weigh, *args, **kwargs))
        first: dict[Any, Any] = {
            _PassArg.context: context,
            _PassArg.eval_context: context.eval_ctx,
            _PassArg.environment: context.environment,
        }
        made_value = made(*args, **kwargs) if passed is None else made(first[passed], *args, **kwargs)
        return watch.through(made_value) if isinstance(made_value, Iterator) else watch.held(made_value)

    return bounded


@pass_context
def _join(context: Context, value: Any, d: Any = "", attribute: Any = None) -> str:
    watch = _watch_of(context)
    items = value if attribute is None else map(make_attrgetter(context.environment, attribute), value)
    texts = [str(item) for item in watch.through(items)]
    between = str(d)
    watch.fits(len(between) * len(texts))
    return watch.concat(chain.from_iterable((between, text) if at else (text,) for at, text in enumerate(texts)))


@pass_context
def _sum(context: Context, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    watch, environment = _watch_of(context), context.environment
    assert isinstance(environment, Sandbox)
    for item in watch.through(value if attribute is None else map(make_attrgetter(environment, attribute), value)):
        start = environment.call_binop(context, "+", start, item)
    return start


def _watch_of(context: Context) -> Watch:
    assert isinstance(context.environment, Sandbox)
    return context.environment.watch


def _opaque(stock: type[Namespace]) -> type[Namespace]:
    """A namespace that does not print its content: it may contain itself, or others many times over."""
    return type("Namespace", (stock,), {"__repr__": lambda self: "<Namespace>"})


def hooked(tree: nodes.Template) -> nodes.Template:
    """The same template with its hooks. Raises TemplateError if it calls one itself."""
    if any(name.name in HOOKS for name in tree.find_all(nodes.Name)):
        raise TemplateError(f"a chat template has no business with {', '.join(HOOKS)}")
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        body: list[nodes.Node] = node.body  # type: ignore[attr-defined]
        body.insert(0, nodes.ExprStmt(_call(CHECK_TIME)).set_lineno(node.lineno))
    template: nodes.Template = _with_hooks(tree)
    return template


def _with_hooks(node: Any) -> Any:
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_with_hooks(one) if isinstance(one, nodes.Node) else one for one in value])
        elif isinstance(value, nodes.Node):
            setattr(node, name, _with_hooks(value))
    if isinstance(node, nodes.Concat):
        return _call(_JOINED, *node.nodes).set_lineno(node.lineno)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _call(_SLICED, node).set_lineno(node.lineno)
    if isinstance(node, (nodes.List, nodes.Tuple, nodes.Dict)) and getattr(node, "ctx", "load") == "load":
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        return node if constant else _call(_HELD, node).set_lineno(node.lineno)
    return node


def _call(name: str, *given: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), list(given), [], None, None)
