"""The native library, loaded once by ctypes. source/main.cpp says what each function does.

Two environment variables are read here: BATON_NATIVE (a variant's name, or "off") and BATON_NATIVE_LIBRARY (another
file, which `scripts/sanitize` sets).
"""

from __future__ import annotations

import os
from ctypes import CDLL, POINTER, c_char_p, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from baton.core.errors import LoadError, SettingError
from baton.native.structs import Attention, Instruction, Layer, ProgramIR, Step, Table, Visibility, Weight

ABI = 7  # see baton_abi in source/main.cpp

FLOAT32, BFLOAT16, INT8, INT4, FLOAT16, FLOAT8 = range(6)  # kinds of weights, keys and values
PANEL = 32  # outputs side by side in a packed weight
GROUP = 64  # inputs that share an int8 weight's scale, per output, if it is rounded here
CHUNK = 32  # inputs of a row that share a scale in products with int4 weights
UNIT = 16  # the fewest inputs that may share an int8 weight's scale
VARIANTS = ("plain", "neondot", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16")  # the best last
OFF = "off"


_NONE, _NO_MEMORY, _NO_THREADS, _INVALID, _FAILED = range(5)  # Fault, in source/guard.h


def _raise(fault: int) -> None:
    if fault == _NO_MEMORY:
        raise MemoryError("no memory for the native kernels")
    if fault == _NO_THREADS:
        raise LoadError(
            "native threads cannot be started: raise the limit of processes (ulimit -u, or pids.max of the control "
            "group), or compute with fewer: --threads 1 needs none"
        )
    if fault == _INVALID:
        raise ValueError("the native kernels refuse these shapes")
    if fault != _NONE:
        raise RuntimeError("the native kernels failed")


def _checked(fault: int) -> int:
    """Checks a function that returns why it failed, or 0."""
    _raise(fault)
    return fault


def _made(address: int | None, function: object, arguments: object) -> int | None:
    """Checks a function that returns null if it failed."""
    if address is None and library is not None:
        _raise(library.baton_fault())
    return address


def _measured(size: int, function: object, arguments: object) -> int:
    """Checks a function that returns a negative size if it failed."""
    if size < 0:
        _raise(_INVALID)
    return size


# For each function: its result and its arguments. Addresses are c_void_p, as torch's data_ptr gives them. Functions
# that can fail raise MemoryError, LoadError (threads), ValueError (arguments) or RuntimeError.
_FUNCTIONS: dict[str, tuple[Any, tuple[type, ...]]] = {
    "baton_fault": (c_int32, ()),
    "baton_sizes": (c_int32, (POINTER(c_int64), c_int32)),
    "baton_kernels": (c_void_p, (c_char_p,)),
    "baton_name": (c_char_p, (c_void_p,)),
    "baton_weight_bytes": (c_int64, (c_void_p, c_int32, c_int64, c_int64)),
    "baton_scale_bytes": (c_int64, (c_void_p, c_int32, c_int64, c_int64, c_int64)),
    "baton_pack": (_checked, (c_void_p, POINTER(Weight), c_int64, c_int64, c_void_p, c_int32)),
    "baton_unpack": (_checked, (c_void_p, POINTER(Weight), c_int64, c_int64, c_void_p)),
    "baton_product": (_checked, (c_void_p, POINTER(Weight), c_void_p, c_int64, c_void_p, c_void_p)),
    "baton_attend": (_checked, (c_void_p, POINTER(Attention))),
    "baton_code": (c_int32, (c_char_p,)),
    "baton_pool_new": (c_void_p, (c_int32,)),
    "baton_pool_free": (_checked, (c_void_p,)),
    "baton_program_new": (
        c_void_p,
        (
            *(c_void_p, c_void_p, POINTER(ProgramIR), POINTER(Instruction), c_int64),
            *(POINTER(Table), c_int64, POINTER(Layer), c_int64, POINTER(Visibility), c_int64, c_void_p, c_int64),
        ),
    ),
    "baton_program_free": (_checked, (c_void_p,)),
    "baton_run": (_checked, (c_void_p, POINTER(Step))),
    "baton_commit": (_checked, (c_void_p, POINTER(Step))),
    "baton_time_parts": (_checked, (c_void_p, c_int32)),
    "baton_parts": (_checked, (c_void_p, c_void_p)),
}
_MEASURES = ("baton_weight_bytes", "baton_scale_bytes")
_MAKERS = ("baton_pool_new", "baton_program_new")


@cache
def load_library() -> CDLL | None:
    """Returns the library with its functions' types; None without one, and `describe` says why. Never raises."""
    return _loaded()[0]


def kernels(name: str = "") -> int | None:
    """Returns the address of a variant's table of kernels; without a name, of this machine's best variant.

    Returns None without a library if no name is given. Raises SettingError for a name that is not available.
    """
    if library is None:
        if name:
            raise SettingError(f"BATON_NATIVE={name}: no native kernels: {_loaded()[1]}", param="native")
        return None
    address: int | None = library.baton_kernels(name.encode())
    if address is None:
        raise SettingError(f"BATON_NATIVE={name}: this machine has {', '.join(variants())}; or {OFF}", param="native")
    return address


def variants() -> list[str]:
    """The names of all tables that the library has and this machine can run, the plainest first."""
    return [name for name in VARIANTS if library is not None and library.baton_kernels(name.encode())]


@cache
def best() -> int | None:
    """Returns the address of the table to compute with: the variant that BATON_NATIVE names, else the machine's best.

    Returns None without a library, or if BATON_NATIVE is "off". Raises SettingError as `kernels`.
    """
    asked = _asked()
    return None if asked == OFF else kernels(asked)


def describe() -> str:
    """Says for people what there is: "native kernels (avx512)", or why there are none.

    Raises SettingError as `kernels`.
    """
    chosen = best()
    if library is None or chosen is None:
        return f"no native kernels: {_loaded()[1]}"
    return f"native kernels ({library.baton_name(chosen).decode()})"


def _asked() -> str:
    return os.environ.get("BATON_NATIVE", "").lower()


@cache
def _loaded() -> tuple[CDLL | None, str]:
    """The library, or None and the reason."""
    if _asked() == OFF:
        return None, f"BATON_NATIVE={OFF}"
    path = Path(os.environ.get("BATON_NATIVE_LIBRARY") or Path(__file__).with_name("_kernels.so"))
    if not path.exists():
        return None, f"{path.name} was not built (no C++ compiler?); reinstall baton where g++ is, for speed"
    try:
        library = CDLL(str(path))
        abi = library.baton_abi()
        if abi != ABI:
            return None, f"{path.name} was built from other sources (ABI {abi}, not {ABI}); reinstall baton"
        for name, (answers, takes) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = answers, takes
        for name in _MAKERS:
            getattr(library, name).errcheck = _made
        for name in _MEASURES:
            getattr(library, name).errcheck = _measured
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be used ({error}); reinstall baton"
    return library, ""


library = load_library()
