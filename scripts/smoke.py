"""Starts `baton serve` with the built-in model, asks it over HTTP, ends it by Ctrl-C; exit status 1 on failure."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI

QUESTIONS = {"What is 17 + 25?": "42", "What is 90 - 4?": "86", 'Spell "lamp".': "l-a-m-p"}


def main() -> None:
    began = time.perf_counter()
    process = subprocess.Popen(["baton", "serve", "--port", "0"], stderr=subprocess.PIPE, text=True)
    url = _url(process)
    # The rest of its output must be read, or the pipe fills up and the server stands still.
    threading.Thread(target=process.stderr.read, daemon=True).start()  # type: ignore[union-attr]
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id

    def ask(question: str) -> str:
        pieces = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], temperature=0, stream=True
        )
        return "".join(piece.choices[0].delta.content or "" for piece in pieces)

    first = ask("What can you do?")
    print(f"first answer after {time.perf_counter() - began:.1f} s: {first.splitlines()[0]}")
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        answers = dict(zip(QUESTIONS, pool.map(ask, QUESTIONS), strict=True))
    process.send_signal(signal.SIGINT)
    status = process.wait(timeout=60)
    for question, answer in answers.items():
        print(f"{question} -> {answer.splitlines()[-1]}")
    wrong = [q for q, answer in answers.items() if QUESTIONS[q] not in answer]
    if wrong or status != 0:
        sys.exit(f"wrong: {wrong}, exit status {status}")
    print("the server answered and ended cleanly")


def _url(process: subprocess.Popen[str]) -> str:
    seen = ""
    for line in process.stderr or ():
        seen += line
        match = re.search(r"http://[\d.]+:\d+", line)
        if match:
            return match.group()
    sys.exit(f"the server did not start:\n{seen}")


if __name__ == "__main__":
    main()
