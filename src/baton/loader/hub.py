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

from baton.core.errors import LoadError
from baton.loader.folder import ADAPTER, CONFIG, check_names, gguf_of, local, names_in, read_json

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
    if gguf_of(source) is not None:
        return
    folder = local(source)
    if folder is None:
        if is_offline_mode():
            _offline(source)
        return
    names = names_in(folder, source)
    check_names(names, source, folder)
    if CONFIG in names:
        read_json(folder, CONFIG, source)


def weight_bytes(source: str) -> int:
    """Returns the size of a model's weight files; 0 if it is unknown without asking the hub."""
    try:
        file = gguf_of(source)
        if file is not None:
            return file.stat().st_size
        folder = local(source) or _cached(source)
        return sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0
    except OSError:
        return 0


def _offline(source: str) -> Place:
    cached = _cached(source)
    if cached is None:
        raise LoadError(
            f"{source}: no such folder here, nor is it in the hub's cache ({constants.HF_HUB_CACHE}), and"
            f" HF_HUB_OFFLINE is set: unset it to download, or {_WAY_OUT}"
        )
    return Place(source, cached, cached=True)


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
