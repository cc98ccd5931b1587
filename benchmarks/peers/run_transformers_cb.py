"""Worker of transformers' continuous batching (paged SDPA): as many requests at once as there are rows."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from job import Answer, Ask, Job, Unsupported, answer
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig

PAGE = 256
"""Its own default."""
BATCH_TOKENS = 512
"""Most tokens of a step. Its own choice, 8192, is made for GPUs: masks of all tokens by all columns of the cache."""


class Continuous:
    version = f"transformers {transformers.__version__} continuous batching"

    def __init__(self, job: Job) -> None:
        if job.dtype == "int8":
            raise Unsupported("stock transformers has no int8 weights without a further library")
        torch.set_num_threads(job.threads)
        model = AutoModelForCausalLM.from_pretrained(
            job.model, dtype=getattr(torch, job.dtype), attn_implementation="sdpa"
        ).eval()
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=(job.rows + 1) * math.ceil(job.longest / PAGE),
            max_requests_per_batch=job.rows,
            max_batch_tokens=BATCH_TOKENS,
            auto_switch_to_flash=False,
        )
        generation = GenerationConfig(do_sample=False, max_new_tokens=job.longest, eos_token_id=-1, pad_token_id=0)
        self._manager = model.init_continuous_batching(generation, config)
        self._manager.start()
        self.processes = [os.getpid()]

    def run(self, asks: Sequence[Ask], *, timed: bool) -> list[Answer]:
        manager = self._manager
        names = [
            manager.add_request(ask.prompt, max_new_tokens=ask.tokens, record_timestamps=timed, eos_token_id=-1)
            for ask in asks
        ]
        done: dict[str, Any] = {}
        while len(done) < len(names):
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError("continuous batching ended by itself")
            elif result.error is not None:
                raise RuntimeError(result.error)
            elif result.is_finished():
                done[result.request_id] = result
        return [Answer(list(done[name].generated_tokens), list(done[name].timestamps or ())) for name in names]

    def close(self) -> None:
        self._manager.stop(block=True, timeout=10)


if __name__ == "__main__":
    answer(Continuous)
