"""Files and batches in one SQLite file. Every change happens as a whole or not at all.

One process at a time holds the file. A process that is killed lets go of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from baton.core.errors import SettingError, StorageFull

_VERSION = 1
_TABLES = """
CREATE TABLE facts(name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE files(serial INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, about TEXT NOT NULL);
CREATE TABLE batches(
    serial INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, status TEXT NOT NULL,
    completed INTEGER NOT NULL, failed INTEGER NOT NULL, about TEXT NOT NULL
);
CREATE INDEX by_status ON batches(status);
CREATE TABLE lines(
    batch TEXT NOT NULL, number INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL,
    custom_id TEXT, good INTEGER, answer TEXT, PRIMARY KEY(batch, number)
);
"""
_PAGE = 500


class Status(StrEnum):
    """The states of a batch, by OpenAI's names."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED = (Status.FAILED, Status.COMPLETED, Status.CANCELLED)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file that is kept. `created_at` is in seconds since 1970."""

    id: str
    owner: str
    bytes: int
    created_at: int
    filename: str
    purpose: str


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch and how far it is. Times are in seconds since 1970.

    `source`: the file of its lines. `seed`: what the seeds of its lines come of. `errors`: why it failed.
    `times`: when it came to each status. `total`, `completed` and `failed` count lines.
    """

    id: str
    owner: str
    endpoint: str
    source: str
    seed: int
    created_at: int
    metadata: dict[str, str] | None = None
    status: Status = Status.VALIDATING
    errors: list[dict[str, Any]] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=dict)
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0

    def at(self, status: Status, now: float) -> Batch:
        """The batch as it comes to a status."""
        return replace(self, status=status, times={**self.times, status.value: int(now)})

    @property
    def left(self) -> int:
        """Lines that have no answer yet."""
        return self.total - self.completed - self.failed


class LineEntry(NamedTuple):
    """A line's place in its file. `answer`: its output line if it needs no asking; None if it is to be asked."""

    number: int
    offset: int
    size: int
    custom_id: str | None
    answer: str | None = None


_OWN = ("id", "owner", "status", "completed", "failed")  # columns; the rest is JSON


class Store:
    """May be called from any thread. Raises StorageFull where the disk has no room."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it. Raises SettingError."""
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, timeout=0.5, isolation_level=None, check_same_thread=False)
            # Held until the connection or the process ends.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._begin()
        except sqlite3.Error as error:
            held = "another process holds it" if "locked" in str(error) else str(error)
            raise SettingError(f"{path}: {held}") from None

    def _begin(self) -> None:
        with self._changing() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"it was written by another version of baton ({version})")
            if version == 0:
                for statement in _TABLES.split(";"):
                    db.execute(statement)
                db.execute("INSERT INTO facts VALUES ('secret', ?)", (secrets.token_bytes(16),))
                db.execute(f"PRAGMA user_version = {_VERSION}")
            self._secret: bytes = db.execute("SELECT value FROM facts WHERE name = 'secret'").fetchone()[0]

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def owner_of(self, key: bytes) -> str:
        """Returns the owner that a key names: a digest, because no key may be in the file; "" without a key."""
        return hashlib.blake2b(key, key=self._secret, digest_size=16).hexdigest() if key else ""

    def add_file(self, file: FileEntry) -> None:
        """Adds a file, or puts it in the place of the one that has its id."""
        about = json.dumps(asdict(file))
        with self._changing() as db:
            db.execute("INSERT OR REPLACE INTO files(id, owner, about) VALUES (?, ?, ?)", (file.id, file.owner, about))

    def file(self, file_id: str, owner: str) -> FileEntry | None:
        rows = self._read("SELECT about FROM files WHERE id = ? AND owner = ?", file_id, owner)
        return FileEntry(**json.loads(rows[0][0])) if rows else None

    def files(self, owner: str) -> list[FileEntry]:
        """All of an owner's files, the oldest first."""
        rows = self._read("SELECT about FROM files WHERE owner = ? ORDER BY serial", owner)
        return [FileEntry(**json.loads(about)) for (about,) in rows]

    def count_files(self) -> int:
        return int(self._read("SELECT count(*) FROM files")[0][0])

    def file_ids(self) -> set[str]:
        return {name for (name,) in self._read("SELECT id FROM files")}

    def remove_file(self, file_id: str) -> None:
        with self._changing() as db:
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))

    def add_batch(self, batch: Batch) -> None:
        with self._changing() as db:
            db.execute(
                "INSERT INTO batches(id, owner, status, completed, failed, about) VALUES (?, ?, ?, 0, 0, ?)",
                (batch.id, batch.owner, batch.status, _about(batch)),
            )

    def batch(self, batch_id: str, owner: str) -> Batch | None:
        return next(iter(self._batches("WHERE id = ? AND owner = ?", batch_id, owner)), None)

    def batches(self, owner: str) -> list[Batch]:
        """All of an owner's batches, the oldest first."""
        return self._batches("WHERE owner = ?", owner)

    def batches_at(self, *statuses: Status) -> list[Batch]:
        """All batches with one of these statuses, the oldest first."""
        return self._batches(f"WHERE status IN ({', '.join('?' * len(statuses))})", *statuses)

    def drop_batches(self, most: int) -> int:
        """Deletes the oldest ended batches until at most `most` are left, and returns how many are left."""
        with self._changing() as db:
            count = int(db.execute("SELECT count(*) FROM batches").fetchone()[0])
            ended = f"status IN ({', '.join('?' * len(ENDED))})"
            which = f"SELECT serial FROM batches WHERE {ended} ORDER BY serial LIMIT ?"
            gone = db.execute(f"DELETE FROM batches WHERE serial IN ({which})", (*ENDED, max(0, count - most)))
            return count - gone.rowcount

    def change(self, batch: Batch, was: Sequence[Status], lines: Iterable[LineEntry] = ()) -> bool:
        """Stores a batch if its status is still one of `was`, and adds `lines`. Returns whether it did."""
        with self._changing() as db:
            failed = 0
            for line in lines:
                good = None if line.answer is None else False
                failed += line.answer is not None
                row = (batch.id, line.number, line.offset, line.size, line.custom_id, good, line.answer)
                db.execute("INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            changed = db.execute(
                f"UPDATE batches SET status = ?, about = ?, failed = failed + ? WHERE id = ? "
                f"AND status IN ({', '.join('?' * len(was))})",
                (batch.status, _about(batch), failed, batch.id, *was),
            )
            if changed.rowcount and batch.status in ENDED:
                db.execute("DELETE FROM lines WHERE batch = ?", (batch.id,))
            return bool(changed.rowcount)

    def unanswered(self, batch_id: str, after: int, most: int) -> list[LineEntry]:
        """The first lines behind number `after` that have no answer yet."""
        wanted = "SELECT number, offset, size, custom_id FROM lines WHERE batch = ? AND number > ? AND answer IS NULL"
        return [LineEntry(*row) for row in self._read(f"{wanted} ORDER BY number LIMIT ?", batch_id, after, most)]

    def answer(self, batch_id: str, number: int, text: str, *, good: bool) -> bool:
        """Stores the output line of a line that has none yet, and returns whether it did."""
        with self._changing() as db:
            kept = db.execute(
                "UPDATE lines SET answer = ?, good = ? WHERE batch = ? AND number = ? AND answer IS NULL",
                (text, good, batch_id, number),
            )
            if kept.rowcount:
                counted = "completed" if good else "failed"
                db.execute(f"UPDATE batches SET {counted} = {counted} + 1 WHERE id = ?", (batch_id,))
            return bool(kept.rowcount)

    def answers(self, batch_id: str, *, good: bool | None = None) -> Iterator[str]:
        """Yields the output lines in order: of answers with a good status, with a bad one, or of all."""
        after = 0
        which = "" if good is None else f"AND good = {int(good)} "
        wanted = "SELECT number, answer FROM lines WHERE batch = ? AND number > ? AND answer IS NOT NULL "
        while rows := self._read(f"{wanted}{which}ORDER BY number LIMIT {_PAGE}", batch_id, after):
            yield from (answer for _, answer in rows)
            after = rows[-1][0]

    def _batches(self, which: str, *values: object) -> list[Batch]:
        rows = self._read(f"SELECT {', '.join(_OWN)}, about FROM batches {which} ORDER BY serial", *values)
        batches = []
        for *own, about in rows:
            known = dict(zip(_OWN, own, strict=True))
            batches.append(Batch(**{**known, "status": Status(known["status"])}, **json.loads(about)))
        return batches

    def _read(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction. Raises StorageFull if the disk has no room."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error) and "full" in str(error):
                    raise StorageFull(f"the disk has no room: {error}") from None
                raise


def new_id(kind: str) -> str:
    return f"{kind}{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def _about(batch: Batch) -> str:
    return json.dumps({name: value for name, value in asdict(batch).items() if name not in _OWN})
