"""`baton batch`: a model in this process, or a server, answers a file of requests line by line."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from baton.chat.remote import may_be_sent
from baton.cli.batch_server import ServerAsker
from baton.cli.show import errors
from baton.core.config import Config
from baton.core.errors import QueryFailed, SettingError
from baton.core.files import check_writable, named, replacing
from baton.core.settings import limits_of
from baton.jobs.lines import Answer, BadLine, checked_lines, unanswered
from baton.jobs.runner import Ask, NoAnswer, Runner
from baton.jobs.store import Batch, LineEntry, Status, Store, new_id, now

UNFINISHED = ".unfinished"


def run_here(config: Config, source: str, output: str) -> None:
    """Has a model in this process answer. Raises QueryFailed if lines failed."""
    with begun(config, source, output, config.model or "the built-in model") as work:
        if not work.batch.left:
            # An earlier run answered everything, and was stopped before it wrote the output.
            run_work(work, _nobody, 1)
        else:
            from baton.cli.batch_engine import asking

            with asking(config) as (ask, at_once):
                run_work(work, ask, at_once)
        work.report()


def run_on_server(config: Config, source: str, output: str, *, url: str, api_key: str | None, at_once: int) -> None:
    """Has a server answer. Raises QueryFailed if lines failed."""
    if api_key is None:
        api_key = next(iter(config.api_key), None)
    if api_key is None and may_be_sent(url):
        api_key = os.environ.get("OPENAI_API_KEY")
    asker = ServerAsker(url, api_key, at_once)
    with begun(config, source, output, "a server") as work:
        run_work(work, asker.ask, at_once)
        work.report()


async def _nobody(url: str, body: bytes, owner: str) -> Answer:
    raise NoAnswer("no line is left to be answered")


class Work:
    """The one batch of a run: a `Place` whose lines are in one file and whose answers go into another."""

    def __init__(self, config: Config, source: str, output: str, who: str) -> None:
        """Resumes what an earlier run left, or begins. `who` names what answers. Raises SettingError."""
        self._source, self._output = Path(source), Path(output)
        self._state = Path(output + UNFINISHED)
        self._most_body_bytes = limits_of(config).max_body_bytes
        if self._output.exists() and not self._state.exists():
            raise SettingError(f"{output} is there already: remove it to have the batch answered anew", param="output")
        with named("", source, param="source"), open(self._source, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        check_writable("--output", self._state, param="output")
        self.store = Store(self._state)
        try:
            self._begin(digest, config.seed, who)
        except BaseException:
            self.store.close()
            raise

    @property
    def batch(self) -> Batch:
        return self.store.batches("")[0]

    def close(self) -> None:
        """Keeps the state, unless the output is written."""
        done = self.batch.status is Status.COMPLETED
        self.store.close()
        if done:
            self._state.unlink(missing_ok=True)

    def read(self, batch: Batch, line: LineEntry) -> bytes:
        with open(self._source, "rb") as file:
            file.seek(line.offset)
            return file.read(line.size)

    def validate(self, batch: Batch) -> None:
        """Begins. A line that cannot be asked gets its error now."""
        lines: list[LineEntry] = []
        with open(self._source, "rb") as file:
            for raw, line in checked_lines(file, self._most_body_bytes):
                wrong = None
                if isinstance(line, BadLine):
                    name = f"batch_req_{batch.id.removeprefix('batch_')}_{raw.number}"
                    wrong = unanswered(name, line.custom_id, line.code, line.message)
                lines.append(LineEntry(raw.number, raw.offset, raw.size, line.custom_id, wrong))
        self.store.change(replace(batch, total=len(lines)).at(Status.IN_PROGRESS, now()), [batch.status], lines)

    def finish(self, batch: Batch) -> None:
        """Writes the output, in the order of the lines."""
        with named("--output", self._output, param="output"), replacing(self._output) as file:
            for line in self.store.answers(batch.id):
                file.write(line.encode() + b"\n")
        self.store.change(batch.at(Status.COMPLETED, now()), [batch.status])

    def report(self) -> None:
        """Tells the result. Raises QueryFailed if lines failed."""
        batch = self.batch
        if batch.failed:
            raise QueryFailed(f"{batch.failed} of {batch.total} lines failed: {self._output} says why")
        errors.print(f"{batch.completed} lines are answered: {self._output}", markup=False)

    def _begin(self, digest: str, seed: int, who: str) -> None:
        known = self.store.batches("")
        if known and known[0].status is Status.COMPLETED and not self._output.exists():
            self.store.drop_batches(0)
            known = []
        if not known:
            self.store.add_batch(Batch(new_id("batch_"), "", who, digest, seed, now()))
        elif known[0].source != digest:
            self._refuse(f"was begun with another {self._source.name}")
        elif known[0].seed != seed:
            self._refuse(f"was begun with --seed {known[0].seed}")
        elif known[0].endpoint != who:
            self._refuse(f"was begun with {known[0].endpoint}, not {who}")
        if self.batch.status is Status.VALIDATING:
            self.validate(self.batch)

    def _refuse(self, why: str) -> None:
        raise SettingError(f"{self._state} {why}: remove it to have the batch answered anew", param="output")


@contextlib.contextmanager
def begun(config: Config, source: str, output: str, who: str) -> Iterator[Work]:
    """Begins or resumes the work. If it is stopped, says how far it is."""
    with contextlib.closing(Work(config, source, output, who)) as work:
        try:
            yield work
        except (KeyboardInterrupt, NoAnswer):
            batch = work.batch
            done = batch.completed + batch.failed
            errors.print(f"stopped: {done} of {batch.total} lines are done; the same command goes on", markup=False)
            raise


def run_work(work: Work, ask: Ask, at_once: int) -> None:
    """Has all unanswered lines answered, and writes the output. Raises NoAnswer."""
    batch = work.batch
    done = batch.completed + batch.failed
    with tqdm(total=batch.total, initial=done, unit="line", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        asyncio.run(Runner(work, ask, at_once, lambda batch, good: bar.update()).run())
