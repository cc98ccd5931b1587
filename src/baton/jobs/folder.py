"""The folder of a server's batches: the store, uploaded files and output files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO

from baton.core.errors import SettingError
from baton.core.files import PART, named, replacing
from baton.core.limits import Limits
from baton.jobs.lines import BadLine, checked_lines
from baton.jobs.store import Batch, FileEntry, LineEntry, Status, Store, now

_MOST_ERRORS = 100


class Folder:
    """The `Place` of a server. Raises SettingError if the folder cannot be used, or another process uses it."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._limits = limits
        self._files = path / "files"
        with named("--batch-dir", path, param="batch_dir"):
            self._files.mkdir(parents=True, exist_ok=True)
        try:
            self.store = Store(path / "batches.sqlite")
        except SettingError as error:
            raise SettingError(f"--batch-dir {error.message}", param="batch_dir") from None
        with named("--batch-dir", path, param="batch_dir"):
            self._clean()

    def close(self) -> None:
        self.store.close()

    def open(self, file_id: str) -> IO[bytes]:
        """A file of the store's, to be read."""
        return self._path_of(file_id).open("rb")

    @contextlib.contextmanager
    def new_file(self, file_id: str) -> Iterator[IO[bytes]]:
        """A file to write. It appears when it is complete, and is known when it is added to the store."""
        with replacing(self._path_of(file_id)) as file:
            yield file

    def remove(self, file_id: str) -> None:
        self.store.remove_file(file_id)
        self._path_of(file_id).unlink(missing_ok=True)

    def in_use(self, file_id: str) -> bool:
        """Whether a batch that has not ended needs the file."""
        live = (Status.VALIDATING, Status.IN_PROGRESS, Status.FINALIZING, Status.CANCELLING)
        return any(batch.source == file_id for batch in self.store.batches_at(*live))

    def read(self, batch: Batch, line: LineEntry) -> bytes:
        with self.open(batch.source) as file:
            file.seek(line.offset)
            return file.read(line.size)

    def validate(self, batch: Batch) -> None:
        """Has a batch begin, or fail with the first errors of its file, as OpenAI does."""
        errors: list[dict[str, object]] = []
        lines: list[LineEntry] = []
        most = self._limits.max_batch_lines
        try:
            with self.open(batch.source) as file:
                checked = checked_lines(file, self._limits.max_body_bytes, endpoint=batch.endpoint)
                for raw, line in islice(checked, most + 1):
                    if isinstance(line, BadLine):
                        error = {"code": line.code, "line": raw.number, "message": line.message, "param": line.param}
                        errors.append(error)
                    else:
                        lines.append(LineEntry(raw.number, raw.offset, raw.size, line.custom_id))
        except OSError:
            errors.append(_error("file_not_found", "the batch's file is not there any more"))
        if len(lines) + len(errors) > most:
            errors = [_error("too_many_lines", f"the file has more than {most} lines (--max-batch-lines)")]
        elif not lines and not errors:
            errors = [_error("empty_file", "the file has no lines")]
        if errors:
            failed = replace(batch, errors=errors[:_MOST_ERRORS]).at(Status.FAILED, now())
            self.store.change(failed, [Status.VALIDATING])
        else:
            begun = replace(batch, total=len(lines)).at(Status.IN_PROGRESS, now())
            self.store.change(begun, [Status.VALIDATING], lines)

    def finish(self, batch: Batch) -> None:
        """Writes the output files and ends the batch. If a crash has it run again, it writes the same files."""
        if batch.status is Status.IN_PROGRESS:
            batch = batch.at(Status.FINALIZING, now())
            if not self.store.change(batch, [Status.IN_PROGRESS]):
                return
        output = self._write(batch, "output", good=True) if batch.completed else None
        failures = self._write(batch, "error", good=False) if batch.failed else None
        cancelled = batch.status is Status.CANCELLING
        ended = replace(batch, output_file_id=output, error_file_id=failures)
        ended = ended.at(Status.CANCELLED if cancelled else Status.COMPLETED, now())
        self.store.change(ended, [batch.status])

    def _write(self, batch: Batch, kind: str, *, good: bool) -> str:
        name = f"{batch.id}_{kind}.jsonl"
        file_id = f"file-{batch.id.removeprefix('batch_')}-{kind}"
        with self.new_file(file_id) as file:
            for line in self.store.answers(batch.id, good=good):
                file.write(line.encode() + b"\n")
            size = file.tell()
        self.store.add_file(FileEntry(file_id, batch.owner, size, now(), name, "batch_output"))
        return file_id

    def _path_of(self, file_id: str) -> Path:
        return self._files / file_id

    def _clean(self) -> None:
        """Removes files that a killed process did not finish, or did not add to the store."""
        known = self.store.file_ids()
        for path in self._files.iterdir():
            if path.name.endswith(PART) or path.name not in known:
                path.unlink()


def _error(code: str, message: str) -> dict[str, object]:
    return {"code": code, "line": None, "message": message, "param": None}
