"""Files that an operator names: each thing that can be wrong with one is a line that names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from baton.bench.compare import read_report
from baton.bench.costmodel import read_costs
from baton.core.config import Config, load_config
from baton.core.errors import SettingError
from baton.core.files import check_writable, read_text, write_text
from baton.core.settings import server_settings
from baton.observe.trace import TraceFile, read_trace
from baton.server.auth import access_of

Place = Callable[[Path], str]
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def folder(at: Path) -> str:
    return str(at)


def missing(at: Path) -> str:
    return str(at / "no" / "such")


def long(at: Path) -> str:
    return str(at / ("x" * 300))


def zero(at: Path) -> str:
    return f"{at}/a\0b"


def pipe(at: Path) -> str:
    """A pipe without a reader."""
    os.mkfifo(at / "pipe")
    return str(at / "pipe")


def full(at: Path) -> str:
    return "/dev/full"


UNWRITABLE = [folder, missing, long, zero, pipe, pytest.param(full, marks=needs_full)]


@pytest.mark.parametrize("place", UNWRITABLE)
def test_what_cannot_be_written_is_one_line(tmp_path: Path, place: Place) -> None:
    path = place(tmp_path)
    with pytest.raises(SettingError, match=r"^--json .*: .") as caught:
        write_text("--json", path, "text", param="json")
    assert path in caught.value.message
    with pytest.raises(SettingError, match=r"^--trace .*: ."):
        TraceFile(path).begin({"model": "toy"})


def test_asking_whether_a_file_can_be_written_leaves_it_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text("--json", path, "before", param="json")
    check_writable("--json", path, param="json")
    assert path.read_text() == "before"
    with pytest.raises(SettingError, match="Is a directory"):
        check_writable("--json", tmp_path, param="json")


def test_a_pipe_that_is_read_is_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        held = os.open(tmp_path / "pipe", os.O_RDWR)  # so that the reader need not be there yet
        write_text("--json", tmp_path / "pipe", "x" * 4000, param="json")
        # Output is lost if the pipe has no holder before the reader has it.
        assert reader.stdout is not None and reader.stdout.read(4000) == b"x" * 4000
        os.close(held)


READERS: list[Callable[[str], object]] = [
    lambda path: load_config({}, file=path, environment={}),
    lambda path: access_of(server_settings(Config(api_key_file=path)), "127.0.0.1"),
    read_trace,
    read_report,
    read_costs,
]


@pytest.mark.parametrize("read", READERS, ids=["config", "keys", "trace", "report", "costs"])
@pytest.mark.parametrize(
    "text", [None, b"\xff\xfe\x00", b"[" * 100_000, b'{"baton_bench": 1}', b'{"baton_trace": 1}\n{', b""]
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, read: Callable[[str], object], text: bytes | None) -> None:
    path = tmp_path / "file"
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text)
    said = str(path)
    try:
        read(str(path))
    except SettingError as error:
        said = error.message
    assert str(path) in said and "\n" not in said


@pytest.mark.parametrize("place", [folder, missing, long, zero])
@pytest.mark.parametrize("read", READERS, ids=["config", "keys", "trace", "report", "costs"])
def test_places_that_cannot_be_read_are_named(tmp_path: Path, read: Callable[[str], object], place: Place) -> None:
    with pytest.raises(SettingError, match=r"file|such|irectory|long|null|zero"):
        read(place(tmp_path))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(SettingError, match="larger than 1,000 bytes"):
        read_text("--config", "/dev/zero", param="config", most_bytes=1000)


def baton(*arguments: str, out: str = os.devnull, source: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    with open(out, "wb") as output:
        command = [sys.executable, "-m", "baton", *arguments]
        return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, input=source, timeout=60)


@needs_full
def test_a_full_disk_behind_the_output_is_one_line() -> None:
    done = baton("info", "--limits", "--json", out="/dev/full")
    assert done.returncode == 1 and done.stderr.startswith(b"baton: ") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("source", [b"\xff\xfe", b""])
def test_prompts_that_are_no_text_are_one_line(source: bytes) -> None:
    done = baton("generate", source=source)
    assert done.returncode == 2 and done.stderr.startswith(b"baton: ") and done.stderr.count(b"\n") == 1


def test_a_report_without_contenders_is_none(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"baton_bench": 1}))
    with pytest.raises(SettingError, match="no report of baton bench"):
        read_report(path)


def test_a_reader_of_stderr_that_leaves_does_not_end_a_server() -> None:
    program = "from baton.cli.show import errors\nfor _ in range(3): errors.print('x' * 2**17)\nprint('here')"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=writing, timeout=60)
    os.close(writing)
    assert done.stdout == b"here\n"
