"""Worker of vLLM's CPU build, in its own environment: its `LLM`, all requests added at once, stepped until done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from job import Answer, Ask, Job, Unsupported, answer, family


def prepare(job: Job) -> None:
    """What vLLM reads from its environment while it is imported.

    By itself it leaves one core to its scheduler: on two cores that halves it. Here it computes on as many cores as
    the others do.
    """
    cores = sorted(os.sched_getaffinity(0))[: job.threads]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    # Its guide asks for Intel's OpenMP, which its package brings; it must be there before the process starts.
    if openmp.exists() and "libiomp5" not in os.environ.get("LD_PRELOAD", ""):
        os.environ["LD_PRELOAD"] = ":".join(filter(None, (os.environ.get("LD_PRELOAD"), str(openmp))))
        os.execv(sys.executable, [sys.executable, *sys.argv])


class Vllm:
    def __init__(self, job: Job) -> None:
        if job.dtype == "int8":
            raise Unsupported("its CPU build takes int8 weights from checkpoints quantized beforehand only")
        from vllm import LLM, SamplingParams, __version__
        from vllm.sampling_params import RequestOutputKind

        self.version = f"vLLM {__version__} CPU"
        self._engine = LLM(
            job.model,
            dtype=job.dtype,
            max_num_seqs=job.rows,
            max_model_len=job.longest,
            kv_cache_memory_bytes=job.kv_bytes,
        ).llm_engine
        self._params = lambda tokens: SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._asked = 0
        self.processes = family()

    def run(self, asks: Sequence[Ask], *, timed: bool) -> list[Answer]:
        answers: dict[str, Answer] = {}
        for ask in asks:
            self._asked += 1
            answers[str(self._asked)] = Answer([])
            prompt = {"prompt_token_ids": ask.prompt}
            self._engine.add_request(str(self._asked), prompt, self._params(ask.tokens))
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                own = answers[output.request_id]
                tokens = list(output.outputs[0].token_ids)
                own.tokens += tokens
                own.times += [time.monotonic()] * len(tokens)
        return list(answers.values())

    def close(self) -> None:
        self._engine.engine_core.shutdown()


if __name__ == "__main__":
    prepare(Job.read(Path(sys.argv[1])))
    answer(Vllm)
