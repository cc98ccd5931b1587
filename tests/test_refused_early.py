"""Whatever can be refused without a model is refused before torch is imported, which takes seconds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

RUN = """
import contextlib, io, json, sys
from baton.cli.main import main
for arguments in json.load(sys.stdin):
    sys.argv, said, status = ["baton", *arguments], io.StringIO(), None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, said.getvalue(), "torch" in sys.modules]))
"""


class Refused(NamedTuple):
    status: int
    said: str
    with_torch: bool


VERBS = ("serve", "generate -p hi", "chat", "check", "bench", "tune")
# What follows `baton`, and what its one line says. {here} is a folder, {port} a port that is taken.
CASES: dict[str, str] = {
    **{f"{verb} /no/such/model": "/no/such/model: no such folder" for verb in (*VERBS, "info")},
    **{f"{verb} nobody/nothing": "nor is it in the hub's cache" for verb in (*VERBS, "info")},
    **{f"{verb} {{here}}": "has no config.json" for verb in (*VERBS, "info")},
    **{f"{verb} --config {{here}}/none.toml": "none.toml: No such file" for verb in VERBS},
    **{f"{verb} --config {{here}}": "Is a directory" for verb in VERBS},
    **{f"{verb} --threads 5000": "at most 1024" for verb in VERBS},
    **{f"{verb} --dtype float7": "must be one of" for verb in (*VERBS, "info")},
    **{f"{verb} --quantize int8 --no-compile": "leave out --no-compile" for verb in VERBS},
    **{f"{verb} --quantize int4 --no-compile": "int4 needs native steps: leave out --no-compile" for verb in VERBS},
    **{
        f"{verb} --quantize int8 --shaping aligned": "leave out --shaping aligned"
        for verb in ("serve", "generate -p hi")
    },
    **{f"{verb} --quantize float8 --device cpu": "not --device cpu" for verb in VERBS},
    **{f"{verb} --step-compiler inductor --no-compile": "without --no-compile" for verb in VERBS},
    **{f"{verb} --trace {{here}}/none/x": "none/x: No such file" for verb in ("serve", "generate -p hi", "chat")},
    **{f"{verb} --policy fifo": "there is baton, orca" for verb in ("serve", "generate -p hi", "chat")},
    **{f"{verb} --kv-memory 4GBs": "not a size" for verb in VERBS},
    **{f"{verb} --pool-memory much": "--swap-memory much: not a size" for verb in VERBS},
    **{f"{verb} --pool-memory 1MB --swap-memory 1MB": "give --swap-memory alone" for verb in VERBS},
    "bench --vary pool-memory=much": "--swap-memory much: not a size",
    "serve --max-batch-size lots": "must be a whole number",
    "serve nobody/a nobody/b": "nobody/a: no such folder",
    "serve a= b": "a model is given as ID, FOLDER or NAME=ID",
    "serve x=nobody/a x=nobody/b": "two models are called x",
    "serve nobody/a nobody/b --served-model-name x": "give several as NAME=ID",
    "serve nobody/a nobody/b --trace x": "--trace is for one model",
    "serve nobody/a nobody/b --batch-dir x": "--batch-dir is for one model",
    "serve nobody/a nobody/b --unload-after 5": "add it",
    "serve --load-on-demand": "name the models to load",
    "serve --port {port}": "is in use: choose another with --port",
    "serve --port 99999": "must be between 0 and 65535",
    "serve --host no.such.host.invalid": "no such address",
    "serve --api-key-file {here}/none": "none: No such file",
    "serve --cors-origin example": "must be * or an origin",
    "serve --shaping aligned --policy orca": "selective batching aligns no rows",
    "serve --shaping aligned --deterministic": "--deterministic's must not",
    "serve --step-compiler inductor --device cpu": "compiled on CUDA, not on cpu",
    "generate -p hi --temperature -1": "temperature must be",
    "generate": "no prompt",
    "batch {here}/none -o {here}/out": "none: No such file",
    "batch {here}/words -o {here}/none/out": "out.unfinished: No such file",
    "batch {here}/words -o {here}/words": "is there already",
    "batch {here}/words": "Missing option",
    "batch {here}/words -o {here}/out --at-once 3": "--at-once is for a server",
    "batch {here}/words /no/such/model -o {here}/out": "/no/such/model: no such folder",
    "batch {here}/words -o {here}/out --server not-an-address": "not an address",
    "batch {here}/words -o {here}/out --server http://127.0.0.1:1 --policy orca": "--policy is for a model",
    "serve --batch-dir {here}/words": "words: Not a directory",
    "chat --temperature -1": "temperature must be",
    "chat --api-key x": "--api-key is for a server",
    "chat http://127.0.0.1:1 --policy orca": "--policy is for a model in this process",
    "bench --policies fifo": "there is baton, orca",
    "bench --policies orca --shaping aligned": "selective batching aligns no rows",
    "bench --vary nosuch=1": "must be like max_batch_size=4,8",
    "bench --vary max_batch_size=0": "must be a whole number above 0",
    "bench --workload {here}/none.csv": "none.csv: No such file",
    "bench --json {here}/none/x.json": "x.json: No such file",
    "bench --html {here}/none/x.html": "x.html: No such file",
    "bench --append": "--append adds to a --json file",
    "bench --append --json {here}/words": "words: ",
    "bench --in-turn 9999 --mode timed": "--mode timed cannot be kept",
    "bench --arrivals poisson:x": "--arrivals poisson:x",
    "bench --factor 2": "is of --mode timed",
    "tune --json {here}/none/x.json": "x.json: No such file",
    "simulate --costs {here}/none.json": "none.json: No such file",
    "simulate --costs {here}/words": "words: ",
    "compare {here}/a.json {here}/b.json": "a.json: No such file",
    "load http://127.0.0.1:1 --json {here}/none/x.json": "x.json: No such file",
    "load not-an-address": "no http:// or https:// address",
    "top not-an-address": "not an address",
    "explain {here}/none": "none: No such file",
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Refused]]:
    here = tmp_path_factory.mktemp("here")
    (here / "words").write_text("no JSON")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = [case.format(here=here, port=port).split() for case in CASES]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=Path(__file__).parent,
        )
        lines = done.stdout.splitlines()
        yield {case: Refused(*json.loads(line)) for case, line in zip(CASES, lines, strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_one_line_before_torch_is_imported(case: str, refused: dict[str, Refused]) -> None:
    refusal = refused[case]
    assert refusal.status in (1, 2)
    *notes, line = refusal.said.splitlines()
    assert line.startswith("baton: ") and all("is called" in note for note in notes)
    assert CASES[case] in refusal.said
    assert not refusal.with_torch
