"""Which GGUF files a name stands for: one file, all parts of a split one, or a form among several, such as Q4_K_M."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from baton.core.errors import LoadError
from baton.loader.folder import CONFIG

_END = ".gguf"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})$")
# Projectors of images and tables for quantising, which lie beside models.
_BESIDE = re.compile(r"(^|[-._])(mmproj|imatrix)([-._]|$)", re.IGNORECASE)
_FORM = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q\d|TQ\d|MXFP4|BF16|F16|F32)[A-Z0-9_]*)$", re.IGNORECASE)
_MOST_TOLD = 12


def source_and_form(source: str) -> tuple[str, str] | None:
    """The two sides of REPO:FORM or FOLDER:FORM; None if a source has no form."""
    where, colon, form = source.rpartition(":")
    if not colon or not where or not form or "/" in form or "\\" in form or Path(source).exists():
        return None
    return where, form


def models_in(names: Collection[str]) -> dict[str, list[str]]:
    """The GGUF models among these files, by their names without parts and ends; each with its files in order."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if not name.lower().endswith(_END) or _BESIDE.search(PurePosixPath(name).name.removesuffix(_END)):
            continue
        stem = name[: -len(_END)]
        part = _PART.match(stem)
        models.setdefault(part[1] if part else stem, []).append(name)
    return models


def chosen(names: Collection[str], form: str, where: str) -> list[str]:
    """The files of the one model that a form means: the end of its name, or the name of a file. Raises LoadError."""
    models = models_in(names)
    asked = form[: -len(_END)] if form.lower().endswith(_END) else form
    part = _PART.match(asked)
    asked = (part[1] if part else asked).lower()
    fits = [one for one in models if asked in (one.lower(), PurePosixPath(one).name.lower())]
    fits = fits or [one for one in models if re.search(rf"(^|[-._/]){re.escape(asked)}$", one.lower())]
    if len(fits) == 1:
        return whole(models[fits[0]], where)
    if not models:
        raise LoadError(f"{where} has no GGUF file: leave out :{form}, or take another model")
    several = "several GGUF models" if fits else "no GGUF model"
    raise LoadError(f"{where} has {several} called {form}: give {told({n: models[n] for n in fits} or models, where)}")


def told(models: Mapping[str, Sequence[str]], where: str) -> str:
    """How each of these models is named, for people."""
    ends = {name: match[1] for name in models if (match := _FORM.search(name))}
    clear = [end for end in ends.values() if sum(other.upper().endswith(end.upper()) for other in ends.values()) == 1]
    ways = [ends[name] if ends.get(name) in clear else f"{PurePosixPath(name).name}{_END}" for name in models]
    more = f" or {len(ways) - _MOST_TOLD} more" if len(ways) > _MOST_TOLD else ""
    return f"{where}:FORM with one of {', '.join(ways[:_MOST_TOLD])}{more}"


def whole(files: Sequence[str], where: str) -> list[str]:
    """The parts of a model, in order. Raises LoadError if one is missing."""
    parts = [match for name in files if (match := _PART.match(name[: -len(_END)]))]
    if not parts:
        return list(files)
    there, count = {int(one[2]) for one in parts}, int(parts[0][3])
    missing = sorted(set(range(1, count + 1)) - there)
    if missing:
        name = f"{parts[0][1]}-{missing[0]:05}-of-{count:05}{_END}"
        raise LoadError(f"{where}: {PurePosixPath(name).name} is missing, so the model is not whole: download it too")
    return list(files)


def local_files(source: str) -> list[Path] | None:
    """The GGUF files that a source means here, or those of a folder without a config; None if it means none.

    Raises LoadError for a folder with several models, for missing parts, and for files that only have the name.
    """
    named = source_and_form(source)
    path = Path(source).expanduser()
    try:
        if named is not None and Path(named[0]).expanduser().is_dir():
            folder = Path(named[0]).expanduser()
            files = [folder / name for name in chosen(_names_in(folder), named[1], named[0])]
        elif path.is_dir():
            if (path / CONFIG).exists() or not (models := models_in(_names_in(path))):
                return None
            if len(models) > 1:
                raise LoadError(f"{source} has several GGUF models: give {told(models, source)}")
            files = [path / name for name in whole(next(iter(models.values())), source)]
        elif path.suffix.lower() == _END and path.is_file():
            files = [path.parent / name for name in chosen(_names_in(path.parent), path.name, str(path.parent))]
        else:
            return None
        for one in files:
            check_file(one)
    except (OSError, ValueError) as error:
        raise LoadError(f"{source} cannot be read: {error}") from error
    return files


def _names_in(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir() if one.suffix.lower() == _END]


def check_file(file: Path) -> None:
    """Raises LoadError if a file does not begin as GGUF files do, OSError if it cannot be read."""
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise LoadError(f"{file} does not begin as a GGUF file: download it again")
