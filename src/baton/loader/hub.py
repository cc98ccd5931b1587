"""Where a model is: a folder, or a snapshot in the hub's cache, downloaded if it is not there.

The hub is asked once for the newest revision and its files. Config, tokenizer and weights then come from that
revision's one folder. If the hub cannot be asked, the cache is served.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from huggingface_hub import HfApi, constants, is_offline_mode, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from baton.core.errors import LoadError
from baton.loader.folder import ADAPTER, CONFIG, check_names, local, names_in, read_json
from baton.loader.gguf_names import check_file, chosen, local_files, models_in, source_and_form, told

log = logging.getLogger("baton.model")

_HUB_SECONDS = 5.0
# Types of files that hold configs and tokenizers; weights are named by their index.
_SMALL = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".vocab", ".bpe", ".codes"}
_WAY_OUT = "give a folder, or the id as the hub has it (owner/name)"


@dataclass(frozen=True, slots=True)
class Place:
    """A model's folder. `listed`: all files that the hub has of it; None if only local files count.

    `cached`: the folder is in the cache, and the hub was not asked.
    """

    source: str
    folder: Path
    listed: frozenset[str] | None = None
    cached: bool = False

    @property
    def names(self) -> frozenset[str]:
        return names_in(self.folder, self.source) if self.listed is None else self.listed

    def bring(self, files: Collection[str]) -> None:
        """Downloads those of these files that are missing here. Raises LoadError if that fails."""
        if self.listed is not None and not _all_there(self.folder, files):
            _download(self.source, files, revision=self.folder.name)


def find(source: str, *, code: bool = False) -> Place:
    """Returns the place of a model by its folder or hub id, with all files but the weights. Raises LoadError.

    `code`: with the Python files that come with it.
    """
    folder = local(source)
    if folder is not None:
        return Place(source, folder)
    return _on_the_hub(source, code)


def check_found(source: str) -> None:
    """Raises LoadError if there is certainly no such model, without asking the hub. Imports no torch."""
    if local_files(source) is not None:
        return
    named = source_and_form(source)
    folder = local(source if named is None else named[0])
    if folder is None:
        if is_offline_mode() and named is not None:
            _gguf_offline(*named)
        elif is_offline_mode():
            _offline(source)
        return
    names = names_in(folder, source)
    check_names(names, source, folder)
    if CONFIG in names:
        read_json(folder, CONFIG, source)


def weight_bytes(source: str) -> int:
    """Returns the size of a model's weight files; 0 if it is unknown without asking the hub."""
    try:
        files = local_files(source)
        named = source_and_form(source) if files is None else None
        if named is not None:
            files = _gguf_offline(*named)
        if files is not None:
            return sum(file.stat().st_size for file in files)
        folder = local(source) or _cached(source)
        return sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0
    except (OSError, LoadError):
        return 0


def gguf_files(source: str) -> list[Path] | None:
    """The GGUF files that a source means, downloaded if they are on the hub; None if it means none. Raises LoadError.

    From the hub a source is REPO:FORM, such as REPO:Q4_K_M, or REPO:FILE.
    """
    files = local_files(source)
    named = source_and_form(source)
    if files is not None or named is None or local(named[0]) is not None:
        return files
    repo, form = named
    if is_offline_mode():
        return _gguf_offline(repo, form)
    cached = _snapshot(repo)
    try:
        info = _ask_hub(repo, float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _HUB_SECONDS))
    except Exception as error:
        why, todo = _why(error)
        if cached is None:
            raise LoadError(f"{repo}: no such folder here, and {why}: {todo}") from error
        log.warning("%s: %s; served from the cache, revision %s", repo, why, cached.name[:12])
        return _gguf_offline(repo, form)
    names = chosen([one.rfilename for one in info.siblings or ()], form, repo)
    if cached is None or cached.name != info.sha or not _all_there(cached, names):
        cached = _download(repo, names)
    for name in names:
        check_file(cached / name)
    return [cached / name for name in names]


def _gguf_offline(repo: str, form: str) -> list[Path]:
    """The files of a form as the cache has them. Raises LoadError."""
    cached = _snapshot(repo)
    if cached is None:
        raise LoadError(_not_here(repo))
    there = [path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.exists()]
    try:
        return [cached / name for name in chosen(there, form, repo)]
    except LoadError as error:
        raise LoadError(f"{error.message} (so it is in the cache: with network it is downloaded)") from error


def _snapshot(repo: str) -> Path | None:
    """The cached snapshot of the revision that was the hub's main branch when it was last asked, whatever it holds."""
    place = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    try:
        snapshot = place / "snapshots" / (place / "refs" / "main").read_text().strip()
        return snapshot if snapshot.is_dir() else None
    except (OSError, ValueError):
        return None


def _offline(source: str) -> Place:
    cached = _cached(source)
    if cached is None:
        raise LoadError(_not_here(source))
    return Place(source, cached, cached=True)


def _not_here(source: str) -> str:
    return (
        f"{source}: no such folder here, nor is it in the hub's cache ({constants.HF_HUB_CACHE}), and"
        f" HF_HUB_OFFLINE is set: unset it to download, or {_WAY_OUT}"
    )


def _on_the_hub(source: str, code: bool) -> Place:
    if is_offline_mode():
        return _offline(source)
    cached = _cached(source)
    try:
        info = _ask_hub(source, float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _HUB_SECONDS))
    except Exception as error:
        why, todo = _why(error)
        if cached is None:
            raise LoadError(f"{source}: no such folder here, and {why}: {todo}") from error
        log.warning("%s: %s; served from the cache, revision %s", source, why, cached.name[:12])
        return Place(source, cached, cached=True)
    listed = frozenset(one.rfilename for one in info.siblings or ())
    if CONFIG not in listed and (models := models_in(listed)):
        raise LoadError(f"{source} holds GGUF weights: give {told(models, source)}")
    check_names(listed, source)
    small = [name for name in listed if "/" not in name and Path(name).suffix in _SMALL]
    small += [name for name in listed if code and name.endswith(".py")]
    if cached is None or cached.name != info.sha or not _all_there(cached, small):
        cached = _download(source, small)
    return Place(source, cached, listed)


def _all_there(folder: Path, files: Collection[str]) -> bool:
    return all((folder / file).exists() for file in files)


def _cached(source: str) -> Path | None:
    """The cached snapshot of the revision that was the hub's main branch when it was last asked."""
    try:
        files = [try_to_load_from_cache(source, name) for name in (CONFIG, ADAPTER)]
    except (HFValidationError, OSError, ValueError):
        return None
    return next((Path(file).parent for file in files if isinstance(file, str)), None)


def _ask_hub(source: str, seconds: float) -> Any:
    """Returns the hub's current description of a model. Raises what the hub's client raises, and TimeoutError."""
    answers: SimpleQueue[Any] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(HfApi().model_info(source, timeout=seconds))
        except Exception as error:
            answers.put(error)

    # In a thread, because nothing bounds how long name resolution takes, nor how many addresses are tried.
    threading.Thread(target=ask, name="baton-hub", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _download(source: str, files: Collection[str], revision: str | None = None) -> Path:
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[escape(file) for file in files]))
    except Exception as error:
        why, todo = _why(error)
        raise LoadError(f"{source} could not be downloaded, {why}: {todo}") from error


def _why(error: Exception) -> tuple[str, str]:
    """Why the hub did not give what it was asked for, and what to do."""
    token = "with a token (HF_TOKEN, or `hf auth login`)"
    if isinstance(error, HFValidationError):
        return "it is no hub id either", _WAY_OUT
    if isinstance(error, GatedRepoError):
        return "the hub gives it only to those who accepted its terms", f"accept them on its page, and load it {token}"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model", f"look at its spelling, or load it {token} if it is private"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        return f"the hub refused with status {status}", f"load it {token}" if status in (401, 403) else "try later"
    if isinstance(error, TimeoutError):
        return "the hub did not answer in time", "look at the network, or raise HF_HUB_ETAG_TIMEOUT (seconds)"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename} cannot be written ({error.strerror})", "look at HF_HOME"
    text = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return f"the hub could not be reached ({text})", "look at the network, or give a folder"
