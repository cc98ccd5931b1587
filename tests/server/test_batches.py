"""Files and batches over HTTP, by OpenAI's own client and by hand: what is kept, for whom, and behind whom it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai.types import Batch

from baton.core.errors import SettingError, StorageFull
from baton.core.limits import Limits
from baton.core.query import BACKGROUND
from baton.jobs.folder import Folder
from baton.server.auth import Access
from server.listening import listening
from server.scripted import MODEL, ScriptedLoop, app_of

PATIENCE = 20
COMPLETIONS = "/v1/completions"


def line(custom_id: str, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompt": "a", **body}}


def text_of(*lines: Any) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


@contextmanager
def serving(loop: ScriptedLoop, path: Path, limits: Limits | None = None, **more: Any) -> Iterator[str]:
    """A server over a folder; at its end it lets go of the folder, and of nothing that is in it."""
    folder = Folder(path, limits or Limits())
    try:
        with listening(app_of(loop, limits, batches=folder, **more), limits) as address:
            yield address
    finally:
        folder.close()


@pytest.fixture
def address(loop: ScriptedLoop, tmp_path: Path) -> Iterator[str]:
    with serving(loop, tmp_path) as address:
        yield address


def client_of(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=PATIENCE)


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return client_of(address)


def upload(client: openai.OpenAI, *lines: Any, name: str = "in.jsonl") -> str:
    return client.files.create(file=(name, text_of(*lines)), purpose="batch").id


def begin(client: openai.OpenAI, *lines: Any, endpoint: Any = COMPLETIONS, **more: Any) -> Batch:
    file_id = upload(client, *lines)
    return client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h", **more)


def until(probe: Callable[[], Any]) -> Any:
    patience = time.monotonic() + PATIENCE
    while time.monotonic() < patience:
        if value := probe():
            return value
        time.sleep(0.01)
    raise AssertionError("it never came to be so")


def at(client: openai.OpenAI, batch: Batch, *statuses: str) -> Batch:
    """The batch once it is at one of these."""

    def look() -> Batch | None:
        batch_now = client.batches.retrieve(batch.id)
        return batch_now if batch_now.status in statuses else None

    return until(look)  # type: ignore[no-any-return]


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(one) for one in client.files.content(file_id).text.splitlines()]


def test_a_batch_from_its_file_to_its_answers(client: openai.OpenAI, loop: ScriptedLoop) -> None:
    lines = [line(f"r{number}", max_tokens=3) for number in range(40)]
    lines[7]["body"]["temperature"] = 99
    batch = begin(client, *lines, metadata={"of": "mine"})
    assert (batch.status, batch.metadata, batch.completion_window) == ("validating", {"of": "mine"}, "24h")
    done = at(client, batch, "completed")
    counts = done.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (40, 39, 1)
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    good, bad = lines_of(client, done.output_file_id), lines_of(client, done.error_file_id)
    assert [one["custom_id"] for one in good] == [f"r{number}" for number in range(40) if number != 7]
    assert all(one["response"]["body"]["choices"][0]["text"] == "hel" and one["error"] is None for one in good)
    assert [(one["custom_id"], one["response"]["status_code"]) for one in bad] == [("r7", 400)]
    assert bad[0]["response"]["body"]["error"]["param"] == "temperature"
    assert len({one["id"] for one in good + bad}) == len({one["response"]["request_id"] for one in good + bad}) == 40
    assert len({query.seed for query in loop.queries}) == 39


@pytest.mark.parametrize(
    ("url", "body", "said"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "choices"),
        ("/v1/responses", {"input": "a"}, "output"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 9}, "content"),
    ],
)
def test_all_routes_that_generate(address: str, client: openai.OpenAI, url: str, body: Any, said: str) -> None:
    sent = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    (output,) = lines_of(client, at(client, begin(client, sent, endpoint=url), "completed").output_file_id)
    plain = httpx.post(f"{address}{url}", json=body).json()
    assert "hello" in json.dumps(output["response"]["body"][said]) and output["response"]["body"].keys() == plain.keys()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream": True}, "stream"),
        ({"model": "other"}, "model"),
        ({"priority": 0, "no_such_field": 1}, "no_such_field"),
        ({"prompt": "x" * 100}, "prompt"),
    ],
)
def test_a_line_that_is_refused_stops_no_other(client: openai.OpenAI, body: Any, param: str) -> None:
    done = at(client, begin(client, line("a"), line("b", **body), line("c")), "completed")
    (bad,) = lines_of(client, done.error_file_id)
    assert (bad["custom_id"], bad["response"]["body"]["error"]["param"]) == ("b", param)
    assert [one["custom_id"] for one in lines_of(client, done.output_file_id)] == ["a", "c"]


def test_a_file_with_wrong_lines_fails_its_batch_by_name(client: openai.OpenAI, loop: ScriptedLoop) -> None:
    other = line("c", url="/v1/embeddings")
    failed = at(client, begin(client, line("a"), b"{", line("a"), other), "failed")
    assert failed.errors is not None and failed.errors.data is not None and failed.failed_at
    assert [(one.line, one.code) for one in failed.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "invalid_url"),
    ]
    assert loop.queries == [] and failed.output_file_id is None
    empty = at(client, begin(client), "failed")
    assert empty.errors.data[0].code == "empty_file"


def test_a_batch_is_below_all_requests_and_fills_no_queue(
    loop: ScriptedLoop, address: str, client: openai.OpenAI
) -> None:
    """The scripted engine has 8 rows."""
    loop.held = True
    batch = begin(client, *(line(f"r{number}") for number in range(60)))
    until(lambda: len(loop.live) == 16)
    time.sleep(0.05)
    assert len(loop.queries) == 16
    assert all(query.background and query.start_by is None and query.end_by is None for query in loop.queries)
    loop.held = False
    assert httpx.post(f"{address}{COMPLETIONS}", json={"prompt": "a"}).status_code == 200
    (asked,) = (query for query in loop.queries if not query.background)
    assert asked.priority < BACKGROUND and asked.start_by is not None
    loop.release()
    assert at(client, batch, "completed").request_counts.completed == 60


def test_choices_count_too_and_a_large_line_is_asked_by_itself(loop: ScriptedLoop, client: openai.OpenAI) -> None:
    loop.held = True
    batch = begin(client, line("a", n=5), line("b", n=16, prompt=["a", "b"]), line("c", n=2))
    until(lambda: loop.live)
    time.sleep(0.05)
    assert len(loop.live) <= 16 or len(loop.live) == 32
    loop.held = False
    until(lambda: loop.release() or at(client, batch, "completed", "in_progress").status == "completed")
    assert len(loop.queries) == 39


def test_a_batch_is_cancelled(loop: ScriptedLoop, client: openai.OpenAI) -> None:
    loop.held = True
    batch = begin(client, *(line(f"r{number}") for number in range(30)))
    until(lambda: len(loop.live) == 16)
    loop.release()
    until(lambda: len(loop.queries) == 30)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = at(client, batch, "cancelled")
    assert done.cancelling_at and done.cancelled_at and done.request_counts.completed == 16
    assert len(lines_of(client, done.output_file_id)) == 16
    until(lambda: len(loop.cancelled) == 14)
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_what_has_ended_cannot_be_cancelled(client: openai.OpenAI) -> None:
    batch = at(client, begin(client, line("a")), "completed")
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.batches.cancel(batch.id)
    with pytest.raises(openai.NotFoundError, match="no batch"):
        client.batches.cancel("batch_none")


def test_a_restarted_server_goes_on(loop: ScriptedLoop, tmp_path: Path) -> None:
    loop.held = True
    with serving(loop, tmp_path) as address:
        client = client_of(address)
        batch = begin(client, *(line(f"r{number}") for number in range(40)))
        until(lambda: len(loop.live) == 16)
        loop.release()
        until(lambda: len(loop.live) == 16)
        seeds = {query.seed for query in loop.queries}
    again = ScriptedLoop()
    with serving(again, tmp_path) as address:
        client = client_of(address)
        done = at(client, batch, "completed")
        outputs = lines_of(client, done.output_file_id)
        assert [one["custom_id"] for one in outputs] == [f"r{number}" for number in range(40)]
        assert len(again.queries) == 24
        # Those that were under way are asked again, and by the same seeds.
        assert len(seeds & {query.seed for query in again.queries}) == 16
    again.close()


def test_draining_lets_go_of_batches_at_once(loop: ScriptedLoop, tmp_path: Path) -> None:
    loop.held = True
    folder = Folder(tmp_path, Limits())
    app: FastAPI = app_of(loop, batches=folder)
    with listening(app) as address:
        client = client_of(address)
        batch = begin(client, line("a"), line("b"))
        until(lambda: len(loop.live) == 2)
        assert app.state.drain(PATIENCE)
        until(lambda: len(loop.cancelled) == 2)  # behind a front, later than it is idle
        batch_now = client.batches.retrieve(batch.id)
        assert (batch_now.status, batch_now.request_counts.completed) == ("in_progress", 0)
    folder.close()


def test_files_are_listed_read_and_deleted(client: openai.OpenAI) -> None:
    names = [upload(client, line("a"), name=f"ü{number}.jsonl") for number in range(5)]
    kept = client.files.retrieve(names[0])
    assert (kept.filename, kept.bytes, kept.purpose) == ("ü0.jsonl", len(text_of(line("a"))), "batch")
    assert client.files.content(names[0]).content == text_of(line("a"))
    assert [file.id for file in client.files.list()] == names[::-1]
    page = client.files.list(limit=2, order="asc", after=names[1])
    assert [file.id for file in page.data] == names[2:4] and page.has_more
    assert [file.id for file in client.files.list(limit=2, order="asc")] == names
    assert client.files.list(purpose="batch_output").data == []
    assert client.files.delete(names[0]).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="no file"):
            gone(names[0])


def test_batches_are_listed(client: openai.OpenAI) -> None:
    made = [begin(client, line("a")).id for _ in range(5)]
    assert [batch.id for batch in client.batches.list()] == made[::-1]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    assert [batch.id for batch in client.batches.list(limit=2, after=made[3]).data] == [made[2], made[1]]
    with pytest.raises(openai.NotFoundError):
        client.batches.list(after="batch_none")


def test_a_file_that_a_batch_needs_stays(loop: ScriptedLoop, client: openai.OpenAI) -> None:
    loop.held = True
    batch = begin(client, line("a"))
    with pytest.raises(openai.BadRequestError) as error:
        client.files.delete(batch.input_file_id)
    assert error.value.code == "file_in_use"
    until(lambda: loop.live)
    loop.release()
    at(client, batch, "completed")
    assert client.files.delete(batch.input_file_id).deleted


def test_what_comes_with_one_key_is_not_there_for_another(loop: ScriptedLoop, tmp_path: Path) -> None:
    with serving(loop, tmp_path, access=Access(keys=("one", "two"))) as address:
        mine, yours = client_of(address, "one"), client_of(address, "two")
        batch = at(mine, begin(mine, line("a")), "completed")
        assert yours.files.list().data == [] and yours.batches.list().data == []
        for refused in (
            lambda: yours.files.content(str(batch.output_file_id)),
            lambda: yours.files.delete(batch.input_file_id),
            lambda: yours.batches.retrieve(batch.id),
            lambda: yours.batches.cancel(batch.id),
            lambda: yours.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/completions", completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                refused()
        assert len(mine.files.list().data) == 2
        with pytest.raises(openai.AuthenticationError):
            client_of(address, "three").files.list()


BAD_BATCHES: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "no file": ({"input_file_id": "file-none"}, 404, "input_file_id"),
    "another window": ({"completion_window": "1h"}, 400, "completion_window"),
    "another endpoint": ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
    "nothing": ({"endpoint": None}, 400, "endpoint"),
    "a field that is not honoured": (
        {"output_expires_after": {"anchor": "created_at", "seconds": 9999}},
        400,
        "output_expires_after",
    ),
    "too many pairs": ({"metadata": {str(at): "" for at in range(17)}}, 400, "metadata"),
    "a long value": ({"metadata": {"a": "x" * 513}}, 400, "metadata"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_batches_that_are_refused(address: str, client: openai.OpenAI, case: str) -> None:
    changed, status, param = BAD_BATCHES[case]
    good = {"input_file_id": upload(client, line("a")), "endpoint": COMPLETIONS, "completion_window": "24h"}
    response = httpx.post(f"{address}/v1/batches", json=good | changed)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


def form(*parts: tuple[str, bytes], end: bytes = b"--x--\r\n") -> bytes:
    head = b"--x\r\ncontent-disposition: form-data; "
    return b"".join(head + what.encode() + b"\r\n\r\n" + data + b"\r\n" for what, data in parts) + end


FILE, PURPOSE = ('name="file"; filename="a"', b"{}"), ('name="purpose"', b"batch")
BAD_UPLOADS: dict[str, tuple[bytes, str, int, str | None]] = {
    "JSON": (b"{}", "application/json", 415, None),
    "no type": (b"", "", 415, None),
    "no boundary": (form(FILE, PURPOSE), "multipart/form-data", 400, None),
    "no form": (b"hello", "multipart/form-data; boundary=x", 400, None),
    "nothing": (b"", "multipart/form-data; boundary=x", 400, None),
    "no end": (form(PURPOSE, FILE, end=b""), "multipart/form-data; boundary=x", 400, None),
    "no file": (form(PURPOSE), "multipart/form-data; boundary=x", 400, "file"),
    "no purpose": (form(FILE), "multipart/form-data; boundary=x", 400, "purpose"),
    "another purpose": (form(FILE, ('name="purpose"', b"vision")), "multipart/form-data; boundary=x", 400, "purpose"),
    "a file as purpose": (
        form(FILE, ('name="purpose"; filename="b"', b"batch")),
        "multipart/form-data; boundary=x",
        400,
        "purpose",
    ),
    "a text as file": (form(('name="file"', b"{}"), PURPOSE), "multipart/form-data; boundary=x", 400, "file"),
    "two files": (form(FILE, FILE, PURPOSE), "multipart/form-data; boundary=x", 400, "file"),
    "an end in time": (
        form(FILE, PURPOSE, ('name="expires_after[seconds]"', b"9")),
        "multipart/form-data; boundary=x",
        400,
        "expires_after[seconds]",
    ),
    "a long purpose": (form(FILE, ('name="purpose"', b"b" * 9999)), "multipart/form-data; boundary=x", 400, "purpose"),
    "a large file": (
        form(('name="file"; filename="a"', b"x" * 5000), PURPOSE),
        "multipart/form-data; boundary=x",
        413,
        None,
    ),
    "a long header": (
        form((f'name="file"; filename="a"; x="{"x" * 9000}"', b"{}"), PURPOSE),
        "multipart/form-data; boundary=x",
        400,
        None,
    ),
    "many headers": (
        form(('name="file"; filename="a"' + "\r\nx: y" * 4000, b"{}"), PURPOSE),
        "multipart/form-data; boundary=x",
        400,
        None,
    ),
    "a very large body": (b"--x" + b"x" * 80_000, "multipart/form-data; boundary=x", 413, None),
}


@pytest.mark.parametrize("case", BAD_UPLOADS)
def test_uploads_that_are_refused_leave_nothing(loop: ScriptedLoop, tmp_path: Path, case: str) -> None:
    body, kind, status, param = BAD_UPLOADS[case]
    with serving(loop, tmp_path, Limits(max_file_bytes=4096)) as address:
        response = httpx.post(f"{address}/v1/files", content=body, headers={"content-type": kind} if kind else {})
        assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text
        assert client_of(address).files.list().data == []
        until(lambda: not [*(tmp_path / "files").iterdir()])


def test_bounds(loop: ScriptedLoop, tmp_path: Path) -> None:
    loop.held = True
    with serving(loop, tmp_path, Limits(max_files=3, max_batches=2, max_batch_lines=2)) as address:
        client = client_of(address)
        three = at(client, begin(client, line("a"), line("b"), line("c")), "failed")
        assert three.errors.data[0].code == "too_many_lines" and "--max-batch-lines" in three.errors.data[0].message
        first, second = (begin(client, line("a")) for _ in range(2))
        with pytest.raises(openai.BadRequestError, match="--max-files"):
            upload(client, line("a"))
        with pytest.raises(openai.BadRequestError, match="--max-batches"):
            client.batches.create(
                input_file_id=first.input_file_id, endpoint="/v1/completions", completion_window="24h"
            )
        assert [batch.id for batch in client.batches.list()] == [second.id, first.id]


def test_a_full_disk_is_told_to_whoever_uploads(
    loop: ScriptedLoop, address: str, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, file: object) -> None:
        raise StorageFull("the disk has no room: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("baton.jobs.store.Store.add_file", full)
        with pytest.raises(openai.InternalServerError, match="No space left") as error:
            upload(client, line("a"))
        assert (error.value.status_code, error.value.code) == (507, "insufficient_storage")
    assert at(client, begin(client, line("a")), "completed")


def test_without_a_folder_the_flag_is_named(base_url: str) -> None:
    for path in ("/v1/files", "/v1/files/file-1/content", "/v1/batches", "/v1/batches/b/cancel"):
        response = httpx.request("POST", base_url + path)
        assert response.status_code == 404 and "--batch-dir" in response.json()["error"]["message"]


def test_a_folder_is_of_one_server(tmp_path: Path) -> None:
    folder = Folder(tmp_path, Limits())
    with pytest.raises(SettingError, match=r"--batch-dir .*another process"):
        Folder(tmp_path, Limits())
    folder.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="--batch-dir"):
        Folder(tmp_path / "file", Limits())


def test_what_a_killed_server_left_half_written_is_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path, Limits())
    folder.close()
    (tmp_path / "files" / "file-1.part").write_text("{")
    (tmp_path / "files" / "file-2").write_text("{}")
    Folder(tmp_path, Limits()).close()
    assert [*(tmp_path / "files").iterdir()] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=%D9%A3", "order=up", "other=1"])
def test_lists_refuse_what_they_do_not_know(address: str, query: str) -> None:
    response = httpx.get(f"{address}/v1/files?{query}")
    assert response.status_code == 400 and response.json()["error"]["param"] == query.split("=")[0]
    assert httpx.get(f"{address}/v1/batches?limit=101").status_code == 400


def test_model_name_is_that_of_the_server(client: openai.OpenAI) -> None:
    (output,) = lines_of(client, at(client, begin(client, line("a", model=MODEL)), "completed").output_file_id)
    assert output["response"]["body"]["model"] == MODEL
