"""torch's compiler, `torch._dynamo`, loaded when somebody compiles instead of with every model.

transformers' modules import it for a few marks on functions, and it brings 300 modules: more than a second and 80 MiB
of a start that compiles nothing. After `load_compiler_late`, its import gives a module that keeps such marks, and that
loads the compiler at the first use of anything else. Nothing is compiled before that, so the marks lose nothing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

COMPILER = "torch._dynamo"
# The one part that transformers imports. It imports nothing else of the compiler.
ALONE = "_trace_wrapped_higher_order_op"
# Each returns the function that it is given, or one that does the same.
_MARKS = ("allow_in_graph", "assume_constant_result", "disable")


def load_compiler_late(package: str = COMPILER) -> None:
    """Call it before transformers is imported. Does nothing if the compiler is loaded already."""
    if package not in sys.modules and not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    """Finds the module that stands for the compiler, and loads the compiler if another part of it is imported."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._standing_in: _StandIn | None = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == self._package and self._standing_in is None:
            spec = PathFinder.find_spec(name, path)
            if spec is None or spec.submodule_search_locations is None:
                return None
            self._standing_in = _StandIn(name, self)
            late = ModuleSpec(name, _Standing(self._standing_in), is_package=True)
            late.submodule_search_locations = list(spec.submodule_search_locations)
            return late
        part = name.removeprefix(f"{self._package}.")
        if part not in (name, ALONE) and self._standing_in is not None:
            self._standing_in.load()
        return None


class _Standing(Loader):
    def __init__(self, module: _StandIn) -> None:
        self._module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Runs nothing."""


class _StandIn(ModuleType):
    """The compiler's package until somebody needs more of it than marks."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self._finder = finder
        self._lock = threading.RLock()
        self._loaded: ModuleType | None = None
        self._marked: list[tuple[str, Callable[..., Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _MARKS and self._loaded is None:
            return functools.partial(self._mark, name)
        return getattr(self.load(), name)

    def load(self) -> ModuleType:
        """Loads the compiler in place of this module."""
        with self._lock:
            if self._loaded is None:
                sys.meta_path[:] = [one for one in sys.meta_path if one is not self._finder]
                # While it loads, its parts look for it in both places.
                parent, _, last = self.__name__.rpartition(".")
                sys.modules.pop(self.__name__, None)
                vars(sys.modules[parent]).pop(last, None)
                loaded = importlib.import_module(self.__name__)
                if (alone := sys.modules.get(f"{self.__name__}.{ALONE}")) is not None:
                    setattr(loaded, ALONE, alone)
                for mark, function in self._marked:
                    getattr(loaded, mark)(function)
                self._marked.clear()
                self._loaded = loaded
            return self._loaded

    def _mark(self, mark: str, function: Any = None, *args: Any, **kwargs: Any) -> Any:
        if function is None:
            return lambda marked: self._mark(mark, marked, *args, **kwargs)
        if not isinstance(function, FunctionType):
            return getattr(self.load(), mark)(function, *args, **kwargs)
        if mark == "disable":
            return self._disabled(function, args, kwargs)
        self._marked.append((mark, function))
        return function

    def _disabled(self, function: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The function itself until the compiler is loaded, and from then on as the compiler disables it."""
        made: list[Any] = []

        @functools.wraps(function)
        def call(*inputs: Any, **named: Any) -> Any:
            if self._loaded is None:
                return function(*inputs, **named)
            if not made:
                made.append(self._loaded.disable(function, *args, **kwargs))
            return made[0](*inputs, **named)

        return call
