"""A model by its hub id: one look, then one revision's folder for all that is loaded; without network, the cache."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from baton.core.config import Config
from baton.core.errors import LoadError
from baton.core.settings import load_settings
from baton.loader import hub as hub_module
from baton.loader.hub import Place, check_found, find, gguf_files, weight_bytes
from baton.loader.load import load
from baton.loader.survey import survey
from hub import MODEL, REVISION, Hub, hub_of
from tiny_checkpoint import save_tiny

# Not what is loaded: other forms of the weights, and what is for people.
OTHERS = (
    "pytorch_model.bin",
    "model-q4.gguf",
    "consolidated.safetensors",
    "original/params.json",
    "README.md",
    "run.py",
)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = save_tiny(tmp_path_factory.mktemp("tiny"))
    (place / "original").mkdir()
    for name in OTHERS:
        (place / name).write_bytes(b"not for us")
    return place


@pytest.fixture
def served(folder: Path) -> Iterator[Hub]:
    with hub_of(folder) as hub:
        yield hub


def use(hub: str, patch: pytest.MonkeyPatch) -> None:
    """Has the hub's client speak to this address; it reads its variables only when it is imported."""
    patch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    url = hub + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.mark.usefixtures("online")
def test_a_model_is_brought_once_and_then_served_with_one_look_or_none(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(served.url, monkeypatch)
    first = load(load_settings(Config(device="cpu", compile=False), MODEL, "tiny"))
    snapshot = tmp_path / "hub" / f"models--{MODEL.replace('/', '--')}" / "snapshots" / REVISION
    brought = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert brought == {path.name for path in served.folder.iterdir() if path.is_file()} - set(OTHERS)
    served.asked.clear()
    again = load(load_settings(Config(device="cpu", compile=False), MODEL, "tiny"))
    assert first.stamp == again.stamp
    # The client asks one more thing by itself, at times.
    assert [path for path in served.asked if MODEL in path] == [f"/api/models/{MODEL}"]
    # A hub that accepts the connection and never answers.
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.2")
    with socket.create_server(("127.0.0.1", 0)) as silent, caplog.at_level(logging.WARNING, "baton.model"):
        use(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        place = find(MODEL)
    assert (place.folder, place.cached) == (snapshot, True)
    assert f"served from the cache, revision {REVISION[:12]}" in caplog.text
    served.asked.clear()
    monkeypatch.setattr(hub_module, "is_offline_mode", lambda: True)
    assert find(MODEL) == Place(MODEL, snapshot, cached=True)
    assert served.asked == []


@pytest.mark.usefixtures("online")
def test_a_cache_that_lacks_a_file_is_completed_or_says_so(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cached_in(served.folder, tmp_path / "hub")
    (snapshot / "model.safetensors").unlink()
    monkeypatch.setattr(hub_module, "is_offline_mode", lambda: True)
    with pytest.raises(LoadError, match=r"no .safetensors file.*\(so it is in the cache: with network it is completed"):
        load(load_settings(Config(device="cpu"), MODEL, "tiny"))
    monkeypatch.setattr(hub_module, "is_offline_mode", lambda: False)
    use(served.url, monkeypatch)
    survey(MODEL)
    assert not (snapshot / "model.safetensors").exists(), "a survey reads no weights"
    load(load_settings(Config(device="cpu", compile=False), MODEL, "tiny"))
    assert (snapshot / "model.safetensors").exists()


def answered(error: Callable[[httpx.Response], Exception], status: int) -> Exception:
    return error(httpx.Response(status, request=httpx.Request("GET", "http://127.0.0.1")))


REFUSALS: dict[str, tuple[Exception, str]] = {
    "no such model": (
        answered(lambda r: RepositoryNotFoundError("404", response=r), 404),  # type: ignore[arg-type]
        "no such folder here, and the hub has no such model: look at its spelling, or load it with a token",
    ),
    "gated": (answered(lambda r: GatedRepoError("403", response=r), 403), "accepted its terms.*HF_TOKEN"),  # type: ignore[arg-type]
    "token": (answered(lambda r: HfHubHTTPError("401", response=r), 401), "status 401: load it with a token"),  # type: ignore[arg-type]
    "down": (answered(lambda r: HfHubHTTPError("503", response=r), 503), "refused with status 503: try later"),  # type: ignore[arg-type]
    "no network": (ConnectionError("Name or service not known"), "could not be reached .Name or service not known"),
    "silence": (TimeoutError(), "did not answer in time: .*HF_HUB_ETAG_TIMEOUT"),
}


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub_module, "is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def cached_in(folder: Path, hub: Path) -> Path:
    """The cache with the model's snapshot."""
    place = hub / f"models--{MODEL.replace('/', '--')}"
    snapshot = place / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(REVISION)
    for path in folder.iterdir():
        if path.is_file() and path.name not in OTHERS:
            (snapshot / path.name).symlink_to(path)
    return snapshot


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("case", REFUSALS)
def test_a_hub_that_does_not_give_a_model_is_told_in_one_line(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error, words = REFUSALS[case]

    def refuse(*args: object) -> None:
        raise error

    monkeypatch.setattr(hub_module, "_ask_hub", refuse)
    with pytest.raises(LoadError, match=words) as caught:
        find(MODEL)
    assert "\n" not in caught.value.message
    snapshot = cached_in(folder, tmp_path / "hub")
    with caplog.at_level(logging.WARNING, "baton.model"):
        place = find(MODEL)
    assert (place.folder, place.cached) == (snapshot, True)
    assert "served from the cache" in caplog.text


@pytest.mark.parametrize("source", ["acme/not-there", "nosuchmodel", "two words", "-x/y"])
def test_without_the_hub_a_model_that_is_not_in_the_cache_is_refused_with_the_way_out(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "is_offline_mode", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        LoadError, match=r"no such folder here, nor .* cache .*HF_HUB_OFFLINE is set: unset it"
    ) as caught:
        find(source)
    assert str(tmp_path) in caught.value.message


def test_an_address_is_told_the_id_that_it_is_of() -> None:
    with pytest.raises(LoadError, match=r"is an address: give the model.s hub id, acme/tiny$"):
        find("https://huggingface.co/acme/tiny")


SPELLINGS = """
import importlib, os
from huggingface_hub import constants, is_offline_mode
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    for value in ("1", "true", "yes", "on", "ON", "True"):
        os.environ[name] = value
        importlib.reload(constants)
        assert is_offline_mode(), (name, value)
    del os.environ[name]
importlib.reload(constants)
assert not is_offline_mode()
"""


def test_every_spelling_of_offline_is_known() -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    ran = subprocess.run([sys.executable, "-c", SPELLINGS], env=inherited, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"config.json", "model-q4.gguf"}, "has no tokenizer"),
        ({"m-q4_0.gguf", "mmproj-f16.gguf"}, "acme/tiny holds GGUF weights: give acme/tiny:FORM with one of q4_0$"),
        ({"model_index.json", "unet/config.json"}, "a diffusers pipeline"),
        ({"params.json", "consolidated.00.pth", "tokenizer.model"}, "Meta's own form"),
        ({".gitattributes"}, "has no config.json"),
        ({"small/config.json", "large/model.safetensors"}, "its folder small has: download that"),
    ],
)
def test_what_the_hub_lists_is_told_before_anything_is_downloaded(
    names: set[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Listed:
        sha = REVISION
        siblings = [type("Sibling", (), {"rfilename": name}) for name in sorted(names)]

    monkeypatch.setattr(hub_module, "_ask_hub", lambda *args: Listed)
    monkeypatch.setattr(hub_module, "snapshot_download", lambda *args, **kwargs: pytest.fail("downloaded"))
    with pytest.raises(LoadError, match=words):
        find(MODEL)


GGUF_FILES = (
    "tiny-Q8_0.gguf",
    "tiny-Q4_K_M.gguf",
    "tiny-UD-Q4_K_M.gguf",
    "mmproj-tiny-F16.gguf",
    "BF16/tiny-BF16-00001-of-00002.gguf",
    "BF16/tiny-BF16-00002-of-00002.gguf",
)
NAMED = {
    "Q8_0": ["tiny-Q8_0.gguf"],
    "q8_0": ["tiny-Q8_0.gguf"],
    "UD-Q4_K_M": ["tiny-UD-Q4_K_M.gguf"],
    "tiny-Q4_K_M.gguf": ["tiny-Q4_K_M.gguf"],
    "BF16": ["BF16/tiny-BF16-00001-of-00002.gguf", "BF16/tiny-BF16-00002-of-00002.gguf"],
    "tiny-BF16-00002-of-00002.gguf": ["BF16/tiny-BF16-00001-of-00002.gguf", "BF16/tiny-BF16-00002-of-00002.gguf"],
}


@pytest.fixture
def of_gguf(tmp_path: Path) -> Iterator[Hub]:
    for name in GGUF_FILES:
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / name).write_bytes(b"GGUF" + name.encode())
    (tmp_path / "repo" / "README.md").write_text("a model")
    with hub_of(tmp_path / "repo") as hub:
        yield hub


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("form", NAMED)
def test_a_form_of_a_gguf_repository_is_brought_alone_and_kept(
    form: str, of_gguf: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(of_gguf.url, monkeypatch)
    files = gguf_files(f"{MODEL}:{form}")
    snapshot = tmp_path / "hub" / f"models--{MODEL.replace('/', '--')}" / "snapshots" / REVISION
    assert files == [snapshot / name for name in NAMED[form]]
    assert sorted(path for path in snapshot.rglob("*") if path.is_file()) == files
    of_gguf.asked.clear()
    assert gguf_files(f"{MODEL}:{form}") == files
    assert [path for path in of_gguf.asked if "/resolve/" in path] == []
    monkeypatch.setattr(hub_module, "is_offline_mode", lambda: True)
    assert gguf_files(f"{MODEL}:{form}") == files
    check_found(f"{MODEL}:{form}")
    assert weight_bytes(f"{MODEL}:{form}") == sum(4 + len(name) for name in NAMED[form])
    with pytest.raises(LoadError, match=r"no GGUF model called Q2_K: give acme/tiny:FORM .* with network it is downl"):
        check_found(f"{MODEL}:Q2_K")


@pytest.mark.usefixtures("online")
def test_a_form_that_a_repository_has_not_is_refused_with_those_that_it_has(
    of_gguf: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(of_gguf.url, monkeypatch)
    forms = "BF16, tiny-Q4_K_M.gguf, Q8_0, UD-Q4_K_M$"
    with pytest.raises(
        LoadError, match=f"acme/tiny has no GGUF model called Q2_K: give acme/tiny:FORM with one of {forms}"
    ):
        gguf_files(f"{MODEL}:Q2_K")
    with pytest.raises(LoadError, match=r"several GGUF models called Q4_K_M: give .* tiny-Q4_K_M\.gguf, UD-Q4_K_M$"):
        gguf_files(f"{MODEL}:Q4_K_M")
    with pytest.raises(LoadError, match=f"holds GGUF weights: give acme/tiny:FORM with one of {forms}"):
        find(MODEL)
    (of_gguf.folder / GGUF_FILES[-1]).unlink()
    with pytest.raises(LoadError, match=r"tiny-BF16-00002-of-00002\.gguf is missing, so the model is not whole"):
        gguf_files(f"{MODEL}:BF16")
    assert not list((tmp_path / "hub").rglob("*.gguf"))
    gguf_files(f"{MODEL}:Q8_0")
    of_gguf.refused = (503, "")
    with caplog.at_level(logging.WARNING, "baton.model"):
        assert gguf_files(f"{MODEL}:Q8_0")
    assert "refused with status 503; served from the cache" in caplog.text
    with pytest.raises(LoadError, match="the hub refused with status 503: try later"):
        gguf_files("acme/other:Q8_0")


def test_without_network_a_form_that_was_never_brought_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "is_offline_mode", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match="acme/tiny: no such folder here, nor is it in the hub's cache"):
        check_found(f"{MODEL}:Q4_K_M")
