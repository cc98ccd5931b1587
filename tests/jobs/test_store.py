"""What is kept of batches: whole changes only, nothing twice, one process at a time."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.core.errors import SettingError, StorageFull
from baton.jobs.store import Batch, FileEntry, LineEntry, Status, Store

HOLD = "import sys\nfrom pathlib import Path\nfrom baton.jobs.store import Store\n"
HOLD += "store = Store(Path(sys.argv[1]))\nprint('held', flush=True)\nsys.stdin.read()"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


def batch_of(name: str, owner: str = "") -> Batch:
    return Batch(name, owner, "/v1/completions", "file-1", seed=2**63 - 1, created_at=5, metadata={"a": "b"})


def begin(store: Store, name: str, lines: int) -> Batch:
    store.add_batch(batch_of(name))
    begun = batch_of(name).at(Status.IN_PROGRESS, 6)
    assert store.change(
        begun, [Status.VALIDATING], [LineEntry(at, 10 * at, 10, f"c{at}") for at in range(1, lines + 1)]
    )
    return begun


def test_a_batch_is_found_as_it_was_kept_also_by_the_next_process(store: Store, tmp_path: Path) -> None:
    store.add_batch(batch_of("b", "me"))
    store.close()
    again = Store(tmp_path / "store")
    assert again.batch("b", "me") == batch_of("b", "me") and again.batch("b", "you") is None
    assert again.batches("me") == [batch_of("b", "me")] and again.batches("you") == []
    again.close()


def test_an_owner_is_the_same_in_each_process_and_no_key_is_kept(store: Store, tmp_path: Path) -> None:
    owner = store.owner_of(b"secret-key")
    store.add_batch(batch_of("b", owner))
    store.close()
    again = Store(tmp_path / "store")
    assert again.owner_of(b"secret-key") == owner != again.owner_of(b"other") and again.owner_of(b"") == ""
    again.close()
    assert b"secret-key" not in (tmp_path / "store").read_bytes()


def test_an_answer_is_kept_once(store: Store) -> None:
    begin(store, "b", 3)
    assert store.answer("b", 2, "two", good=True)
    assert not store.answer("b", 2, "again", good=False)
    assert store.answer("b", 1, "one", good=False)
    batch = store.batches("")[0]
    assert (batch.completed, batch.failed) == (1, 1)
    assert [line.number for line in store.unanswered("b", 0, 9)] == [3]
    assert store.unanswered("b", 0, 9)[0] == LineEntry(3, 30, 10, "c3")
    assert list(store.answers("b")) == ["one", "two"]
    assert list(store.answers("b", good=True)) == ["two"] and list(store.answers("b", good=False)) == ["one"]


def test_answers_come_in_the_order_of_the_lines_however_many_there_are(store: Store) -> None:
    begin(store, "b", 1200)
    for number in reversed(range(1, 1201)):
        store.answer("b", number, str(number), good=True)
    assert list(store.answers("b")) == [str(number) for number in range(1, 1201)]


def test_a_change_is_made_from_where_the_batch_is_or_not_at_all(store: Store) -> None:
    begun = begin(store, "b", 2)
    assert not store.change(begun.at(Status.FAILED, 7), [Status.VALIDATING])
    assert store.batches("")[0].status is Status.IN_PROGRESS
    assert store.batches_at(Status.IN_PROGRESS, Status.FAILED) == [begun]
    assert store.change(begun.at(Status.COMPLETED, 8), [Status.IN_PROGRESS])
    ended = store.batches("")[0]
    assert ended.times == {"in_progress": 6, "completed": 8}
    assert store.unanswered("b", 0, 9) == []


def test_those_that_ended_first_are_dropped_and_no_others(store: Store) -> None:
    for name in "abc":
        begun = begin(store, name, 1)
        if name != "b":
            store.change(begun.at(Status.COMPLETED, 8), [Status.IN_PROGRESS])
    assert store.drop_batches(2) == 2 and [batch.id for batch in store.batches("")] == ["b", "c"]
    assert store.drop_batches(0) == 1 and [batch.id for batch in store.batches("")] == ["b"]


def test_files_are_known_by_their_owner(store: Store) -> None:
    file = FileEntry("file-1", "me", 3, 4, "a.jsonl", "batch")
    store.add_file(file)
    store.add_file(file)
    assert store.files("me") == [file] and store.files("you") == [] and store.count_files() == 1
    assert store.file("file-1", "me") == file and store.file("file-1", "you") is None
    store.remove_file("file-1")
    assert store.file("file-1", "me") is None and store.file_ids() == set()


def test_a_full_disk_is_told_and_leaves_what_was_there(store: Store) -> None:
    begin(store, "b", 2)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StorageFull, match="full"):
        store.answer("b", 1, "x" * 100_000, good=True)
    assert store.batches("")[0].completed == 0
    assert store.answer("b", 1, "short", good=True)


def test_one_process_holds_it_and_lets_go_when_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(SettingError, match="another process holds it"):
            Store(path)
        other.send_signal(signal.SIGKILL)
        other.wait()
    Store(path).close()


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("no database, but words, and more than a few of them " * 50)
    with pytest.raises(SettingError, match="not a database"):
        Store(tmp_path / "words")
    with pytest.raises(SettingError, match="unable to open"):
        Store(tmp_path / "none" / "store")
    db = sqlite3.connect(tmp_path / "newer")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SettingError, match="another version"):
        Store(tmp_path / "newer")
