"""Worker of llama.cpp as PyPI's `xllamacpp` carries it, built: its own server inside this process, nothing to compile.

Asked as run_llama_cpp.py asks llama-server. A build for this very processor may be faster; `get_system_info` says for
which instructions it was built.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import xllamacpp
from job import Job, answer
from run_llama_cpp import QUEUED, Llama


class Wheel(Llama):
    def __init__(self, job: Job) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(job.gguf)
        params.n_parallel = job.rows
        params.n_ctx = job.rows * -(-job.longest // 256) * 256
        params.kv_unified = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job.threads
        params.n_threads_http = QUEUED
        params.cache_ram_mib = 0
        params.port = 0
        params.verbosity = 0
        self._server = xllamacpp.Server(params)
        self._port = urlsplit(self._server.listening_address).port
        self.processes = [os.getpid()]
        self.version = f"llama.cpp (xllamacpp {xllamacpp.__version__})"

    def close(self) -> None:
        """It ends with the process."""


if __name__ == "__main__":
    answer(Wheel)
