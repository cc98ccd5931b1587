"""Compiles src/baton/native/source into one plain shared library; hatchling's build hook, and a command by hand.

`pip install` runs the hook. By hand, with nothing but Python and a compiler:

    python hatch_build.py [--debug | --sanitize [address|thread]] [--out FILE]

`CXX` names the compiler. The library knows neither Python's nor torch's ABI: it is called by ctypes. Where it cannot be
built, or BATON_NO_NATIVE=1 asks for none, the install goes on without it, and baton computes with torch alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # by hand
    BuildHookInterface: Any = object  # type: ignore[no-redef]

LIBRARY = "src/baton/native/_kernels.so"
SOURCE = "src/baton/native/source"
CACHE = "build/native"
KEPT_SECONDS = 24 * 3600  # an object that no build has asked for since is deleted

EACH_VARIANT = (
    "linear.cpp",
    "linear4.cpp",
    "linear8.cpp",
    "linear_half.cpp",
    "attention.cpp",
    "rowwise.cpp",
    "variant.cpp",
)
ONCE = (
    "guard.cpp",
    "pool.cpp",
    "program.cpp",
    "program_api.cpp",
    "program_check.cpp",
    "program_products.cpp",
    "program_scan.cpp",
    "program_tokens.cpp",
    "main.cpp",
)
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma")
# An instruction set: its compiler flags, and the macro by which a compiler shows that it understood them.
VARIANTS: dict[str, tuple[tuple[str, ...], str]] = {
    "plain": ((), "__cplusplus"),
    "neondot": (("-march=armv8.2-a+dotprod",), "__ARM_FEATURE_DOTPROD"),
    "avx2": (AVX2, "__F16C__"),
    "avxvnni": ((*AVX2, "-mavxvnni"), "__AVXVNNI__"),
    "avx512": (AVX512, "__AVX512DQ__"),
    "avx512vnni": ((*AVX512, "-mavx512vnni"), "__AVX512VNNI__"),
    "avx512bf16": ((*AVX512, "-mavx512vnni", "-mavx512bf16"), "__AVX512BF16__"),
}

ALWAYS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-pthread", "-Wall")
MODES: dict[str, tuple[str, ...]] = {
    "release": ("-O3",),
    "debug": ("-O0", "-g"),
    "address": ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=thread"),
}
_INCLUDED = re.compile(rb'^#include "(.+)"', re.MULTILINE)
# A library that brings its C++ runtime along, and shows nothing of it, runs beside any other; not every linker can.
OWN_RUNTIME = ("-static-libgcc", "-static-libstdc++", "-Wl,--exclude-libs,ALL")


class CannotBuild(Exception):
    """No compiler, or one that failed; says which and how."""


# Not dataclasses: hatchling runs this file without naming it in sys.modules, where those look.
class Compiler(NamedTuple):
    """A C++ compiler: its command, what it says of itself, and the variants it can compile."""

    command: tuple[str, ...]
    version: str
    variants: tuple[str, ...]

    @classmethod
    def find(cls) -> Compiler:
        """The one that CXX names, or the first installed. Raises CannotBuild where there is none that works."""
        asked = os.environ.get("CXX")
        names = [asked] if asked else ["g++", "clang++", "c++"]
        command = next((words for name in names if (words := shlex.split(name)) and shutil.which(words[0])), None)
        if command is None:
            raise CannotBuild(f"no C++ compiler ({', '.join(names)})")
        known = tuple(name for name, (flags, macro) in VARIANTS.items() if macro in _macros([*command, *flags]))
        if "plain" not in known:
            raise CannotBuild(f"{shlex.join(command)} does not work")
        return cls(tuple(command), _answer([*command, "--version"]), known)

    def run(self, *arguments: str) -> None:
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise CannotBuild(f"{shlex.join([*self.command, *arguments])}\n{done.stderr}")


def _answer(command: Sequence[str]) -> str:
    """What a command says, or nothing where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _macros(command: Sequence[str]) -> set[str]:
    lines = _answer([*command, "-dM", "-E", "-x", "c++", os.devnull]).splitlines()
    return {line.split()[1] for line in lines if line.startswith("#define ")}


class Job(NamedTuple):
    """One object to compile. Its file is named by all that it is made of, so that one that exists is up to date."""

    source: Path
    variant: str | None
    flags: tuple[str, ...]
    stamp: str

    @property
    def name(self) -> str:
        return self.source.name if self.variant is None else f"{self.source.name} for {self.variant}"

    @property
    def object(self) -> str:
        parts = (self.source.stem, *([self.variant] if self.variant else []), self.stamp)
        return "-".join(parts) + ".o"


def jobs_of(source: Path, compiler: Compiler, mode: str) -> list[Job]:
    without = tuple(f"-DWITHOUT_{name.upper()}" for name in VARIANTS if name not in compiler.variants)

    def job(file: str, variant: str | None) -> Job:
        chosen = without if variant is None else (*VARIANTS[variant][0], f"-DVARIANT={variant}")
        flags = (*ALWAYS, *MODES[mode], *chosen)
        made_of = (" ".join((*compiler.command, *flags)), compiler.version)
        digest = hashlib.sha256("\n".join(made_of).encode() + b"".join(_read(source / file)))
        return Job(source / file, variant, flags, digest.hexdigest()[:16])

    many = [job(file, variant) for variant in compiler.variants for file in EACH_VARIANT]
    return many + [job(file, None) for file in ONCE]


def _read(path: Path) -> list[bytes]:
    """The file and all of ours that it includes, each once."""
    texts: dict[Path, bytes] = {}
    todo = [path]
    while todo:
        one = todo.pop()
        if one not in texts:
            texts[one] = one.read_bytes()
            todo += [one.parent / name.decode() for name in _INCLUDED.findall(texts[one])]
    return list(texts.values())


def build(root: Path, out: Path, mode: str = "release") -> str:
    """Builds the library at `out`, in one move, and says what it holds. Raises CannotBuild, and leaves `out` alone."""
    compiler = Compiler.find()
    cache = root / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    try:
        jobs = jobs_of(root / SOURCE, compiler, mode)
    except FileNotFoundError as error:
        raise CannotBuild(f"{error.filename} is missing") from None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = [pool.submit(_compile, compiler, job, cache) for job in jobs]
    wrong = [str(work.exception()) for work in compiled if work.exception()]
    if wrong:
        raise CannotBuild("\n".join(wrong))
    _link(compiler, [cache / job.object for job in jobs], out, mode)
    _forget_old(cache)
    return f"{out} ({mode}; {', '.join(compiler.variants)})"


def _compile(compiler: Compiler, job: Job, cache: Path) -> None:
    made = cache / job.object
    if made.exists():
        made.touch()
        return
    sys.stdout.write(f"compiling {job.name}\n")  # whole lines, though several threads write
    # Two builds may run at once: each writes a file of its own and moves it to its place when it is whole.
    whole = made.with_suffix(f".{os.getpid()}")
    try:
        compiler.run(*job.flags, "-c", str(job.source), "-o", str(whole))
        whole.replace(made)
    finally:
        whole.unlink(missing_ok=True)


def _link(compiler: Compiler, objects: list[Path], out: Path, mode: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = out.with_name(f"{out.name}.{os.getpid()}")
    rest = (*ALWAYS, *MODES[mode], "-shared", *map(str, objects), "-o", str(whole))
    try:
        try:
            compiler.run(*rest, *(OWN_RUNTIME if mode == "release" else ()))
        except CannotBuild:
            compiler.run(*rest)
        whole.replace(out)
    finally:
        whole.unlink(missing_ok=True)


def _forget_old(cache: Path) -> None:
    for path in cache.glob("*.o"):
        if time.time() - path.stat().st_mtime > KEPT_SECONDS:
            path.unlink(missing_ok=True)


def try_build(root: Path) -> bool:
    """Whether the library could be built in place. Where not, it says so in one line, and no old one is left there."""
    library = root / LIBRARY
    try:
        if os.environ.get("BATON_NO_NATIVE", "0") not in ("", "0"):
            raise CannotBuild("BATON_NO_NATIVE asks for none")
        print(f"built {build(root, library)}")
        return True
    except (CannotBuild, OSError) as error:
        library.unlink(missing_ok=True)
        print(f"no native kernels: {_first_line(error)}. baton works without them, slower on CPUs", flush=True)
        return False


def _first_line(error: Exception) -> str:
    """The line that names the trouble: a compiler's first "error:", else the first."""
    lines = str(error).splitlines()
    return next((line for line in lines if "error:" in line), lines[0])


class NativeKernels(BuildHookInterface):  # type: ignore[misc]
    """Runs for wheels, editable ones too. Without the library the wheel is pure Python and installs anywhere."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if try_build(Path(self.root)):
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
            build_data["artifacts"].append(f"/{LIBRARY}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compiles baton's native kernels.")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--debug", action="store_const", const="debug", dest="mode", help="not optimised")
    how.add_argument(
        "--sanitize", nargs="?", const="address", dest="mode", choices=("address", "thread"), help="address: and UB"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"in place of {LIBRARY}")
    asked = parser.parse_args()
    root = Path(__file__).resolve().parent
    try:
        print(f"built {build(root, asked.out or root / LIBRARY, asked.mode or 'release')}")
    except CannotBuild as error:
        sys.exit(f"cannot build: {error}")


if __name__ == "__main__":
    main()
