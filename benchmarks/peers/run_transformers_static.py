"""Worker of transformers' `generate` in static batches: `rows` queries at a time in order, padded on the left.

A batch runs until its longest answer is complete; the tokens that its shorter ones get beyond what was asked are not
counted.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence

import torch
import transformers
from job import Answer, Ask, Job, Unsupported, answer
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class Steps(BaseStreamer):
    """Notes when each step's tokens were there. The prompt is put first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.monotonic())

    def end(self) -> None:
        del self.times[0]


class Static:
    version = f"transformers {transformers.__version__} generate"

    def __init__(self, job: Job) -> None:
        if job.dtype == "int8":
            raise Unsupported("stock generate has no int8 weights without a further library")
        torch.set_num_threads(job.threads)
        self._model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype)).eval()
        self._model.generation_config.eos_token_id = None
        self._rows = job.rows
        self.processes = [os.getpid()]

    def run(self, asks: Sequence[Ask], *, timed: bool) -> list[Answer]:
        batches = (asks[at : at + self._rows] for at in range(0, len(asks), self._rows))
        return list(itertools.chain.from_iterable(self._batch(batch) for batch in batches))

    def close(self) -> None:
        pass

    def _batch(self, asks: Sequence[Ask]) -> list[Answer]:
        width, longest = max(len(ask.prompt) for ask in asks), max(ask.tokens for ask in asks)
        ids = torch.zeros(len(asks), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, ask in enumerate(asks):
            ids[row, width - len(ask.prompt) :] = torch.tensor(ask.prompt)
            mask[row, width - len(ask.prompt) :] = 1
        steps = Steps()
        output = self._model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=longest, pad_token_id=0, streamer=steps
        )
        tokens = output[:, width:].tolist()
        return [Answer(own[: ask.tokens], steps.times[: ask.tokens]) for own, ask in zip(tokens, asks, strict=True)]


if __name__ == "__main__":
    answer(Static)
