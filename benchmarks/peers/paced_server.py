"""A server of OpenAI's completions that computes nothing: each token comes at a time that is known before.

    python -m benchmarks.peers.paced_server PORT

For load generators to be held against the truth. A query's first token comes 50 to 98 ms after it, the next ones each
20 ms later; both are counted from when the query came, so that nobody's delay moves what comes after it. GET /truth
tells what a generator with eyes everywhere would have seen since the last GET /truth, and how late this server was
itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

# Seven, so that the median is one of them by anybody's definition.
FIRST_SECONDS = (0.050, 0.058, 0.066, 0.074, 0.082, 0.090, 0.098)
GAP_SECONDS = 0.020
VOCABULARY = 250
MODEL = "paced"


class Paced:
    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.came: list[float] = []
        self.answers: list[int] = []
        self.prompt_tokens = 0
        self.late: list[float] = []
        self.ended = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while line := await reader.readline():
                length = 0
                while (header := (await reader.readline()).strip()) != b"":
                    name, _, value = header.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                body = await reader.readexactly(length)
                path = line.split()[1].decode()
                if path == "/v1/completions":
                    await self._complete(json.loads(body), writer)
                else:
                    writer.write(_plain(self._page(path)))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client is gone
        finally:
            writer.close()

    async def _complete(self, asked: dict[str, object], writer: asyncio.StreamWriter) -> None:
        came, count = time.monotonic(), int(str(asked["max_tokens"]))
        first = FIRST_SECONDS[len(self.came) % len(FIRST_SECONDS)]
        self.came.append(came)
        self.answers.append(count)
        prompt = asked["prompt"]
        prompt_tokens = len(prompt) if isinstance(prompt, list) else len(str(prompt).split())
        self.prompt_tokens += prompt_tokens
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for number in range(count):
            due = came + first + number * GAP_SECONDS
            await asyncio.sleep(due - time.monotonic())
            reason = "length" if number == count - 1 else None
            choice = {"index": 0, "text": " a", "logprobs": None, "finish_reason": reason}
            writer.write(_event({"object": "text_completion", "model": MODEL, "choices": [choice]}))
            self.late.append(time.monotonic() - due)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count, "total_tokens": prompt_tokens + count}
        writer.write(_event({"object": "text_completion", "model": MODEL, "choices": [], "usage": usage}))
        writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self.ended = max(self.ended, came + first + (count - 1) * GAP_SECONDS)

    def _page(self, path: str) -> object:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        if path == "/tokenizer_info":
            return {"vocab_size": VOCABULARY}
        return self._truth() if path == "/truth" else {}

    def _truth(self) -> dict[str, object]:
        firsts = [FIRST_SECONDS[number % len(FIRST_SECONDS)] for number in range(len(self.came))]
        late = sorted(self.late)
        usage = {
            "queries": len(self.came),
            "prompt": self.prompt_tokens,
            "generated": sum(self.answers),
            "seconds": self.ended - min(self.came, default=self.ended),
            "first": firsts,
            "whole": [first + (n - 1) * GAP_SECONDS for first, n in zip(firsts, self.answers, strict=True)],
            "gap": GAP_SECONDS,
            "late p99": late[int(len(late) * 0.99)] if late else 0.0,
        }
        self._forget()
        return usage


def _plain(page: object) -> bytes:
    body = json.dumps(page).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _event(told: dict[str, object]) -> bytes:
    return _chunk(f"data: {json.dumps(told)}\n\n".encode())


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def main(port: int) -> None:
    server = await asyncio.start_server(Paced().serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
