"""Worker of llama.cpp: its own `llama-server`, a slot for each row, completions of token ids over HTTP.

As good as it can be had: its prompt cache is off, because no two prompts begin alike, and of its samplers only the
one for the likeliest token is on. Keys and values are float16, its default. It never generates the end token where it
is told to ignore it: there, and only there, a float32 answer differs from the other engines'.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from job import Answer, Ask, Job, answer

HOST = "127.0.0.1"
QUEUED = 64
"""Requests that its server holds at once: those beyond its slots wait inside of it."""


class Llama:
    def __init__(self, job: Job) -> None:
        program = Path(job.peers) / "llama" / "build" / "bin" / "llama-server"
        with socket.socket() as free:
            free.bind((HOST, 0))
            self._port = free.getsockname()[1]
        flags = f"--host {HOST} --port {self._port} --threads {job.threads} --threads-batch {job.threads}"
        flags += f" --parallel {job.rows} --ctx-size {job.rows * -(-job.longest // 256) * 256} --no-kv-unified"
        flags += f" --threads-http {QUEUED} --cache-ram 0 --offline"
        self._server = subprocess.Popen([str(program), "--model", str(job.gguf), *flags.split()])
        self.processes = [self._server.pid]
        told = subprocess.run([str(program), "--version"], capture_output=True, text=True)
        self.version = "llama.cpp " + (re.findall(r"version: (.*)", told.stdout + told.stderr) or ["?"])[0]
        while not self._ready():
            if self._server.poll() is not None:
                raise RuntimeError(f"llama-server ended with status {self._server.returncode}")
            time.sleep(0.05)

    def run(self, asks: Sequence[Ask], *, timed: bool) -> list[Answer]:
        with ThreadPoolExecutor(QUEUED) as threads:
            return list(threads.map(lambda ask: self._ask(ask, timed), asks))

    def close(self) -> None:
        self._server.terminate()
        self._server.wait(timeout=60)

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._port)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _ask(self, ask: Ask, timed: bool) -> Answer:
        body = {
            "prompt": ask.prompt,
            "n_predict": ask.tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "samplers": ["top_k"],
            "top_k": 1,
            "return_tokens": True,
            "stream": timed,
        }
        connection = http.client.HTTPConnection(HOST, self._port)
        connection.request("POST", "/completion", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"llama-server answered {response.status}: {response.read().decode()}")
        answer = self._streamed(response) if timed else Answer(self._checked(json.load(response), ask)["tokens"])
        connection.close()
        return answer

    def _streamed(self, response: http.client.HTTPResponse) -> Answer:
        answer = Answer([])
        for line in response:
            if line.startswith(b"data: "):
                tokens = json.loads(line[6:])["tokens"]
                answer.tokens += tokens
                answer.times += [time.monotonic()] * len(tokens)
        return answer

    def _checked(self, told: dict[str, Any], ask: Ask) -> dict[str, Any]:
        """A prompt that the server changed, by a token in front for instance, would be other work."""
        if told["tokens_evaluated"] != len(ask.prompt):
            raise RuntimeError(f"it read {told['tokens_evaluated']} prompt tokens of {len(ask.prompt)}")
        return told


if __name__ == "__main__":
    answer(Llama)
