"""This engine's worker: the public Python interface, policy `baton`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from job import Answer, Ask, Job, Unsupported, answer

import baton
from baton import LLM, SamplingParams
from baton.core.errors import SettingError


class Baton:
    version = f"baton {baton.__version__}"

    def __init__(self, job: Job) -> None:
        number = {"dtype": "bfloat16", "quantize": "int8"} if job.dtype == "int8" else {"dtype": job.dtype}
        model, number = (str(job.gguf), {}) if job.dtype.startswith("q4") else (job.model, number)
        try:
            # No prompt begins as another does: other engines' prompt caches are off, too.
            self._llm = LLM(model, max_batch_size=job.rows, threads=job.threads, prefix_cache=False, **number)
        except SettingError as error:
            if error.param == "quantize":
                raise Unsupported(str(error)) from None
            raise
        self.processes = [os.getpid()]

    def run(self, asks: Sequence[Ask], *, timed: bool) -> list[Answer]:
        client = self._llm.client
        queries = []
        for ask in asks:
            params = SamplingParams(temperature=0, max_tokens=ask.tokens, ignore_eos=True)
            queries += client.queries(ask.prompt, params)
        answers = {query.id: Answer([]) for query in queries}
        for update in client.run(queries):
            if update.error is not None:
                raise RuntimeError(update.error)
            one = answers[update.query_id]
            one.tokens += update.token_ids
            one.times += [time.monotonic()] * len(update.token_ids)
        return list(answers.values())

    def close(self) -> None:
        self._llm.close()


if __name__ == "__main__":
    answer(Baton)
