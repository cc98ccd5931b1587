"""Lines of a batch: what is a request, what is wrong with others, and the seed that each has."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from baton.jobs.lines import URLS, Answer, BadLine, Line, answered, checked_lines, raw_lines, read_line, unanswered
from baton.server.app import GENERATING
from jobs.places import CHAT, line, text_of

MOST = 1000


def read(text: bytes, endpoint: str | None = None) -> Line:
    (raw,) = raw_lines(io.BytesIO(text), MOST)
    return read_line(raw, endpoint=endpoint)


def wrong(text: bytes, endpoint: str | None = None) -> BadLine:
    with pytest.raises(BadLine) as error:
        read(text, endpoint)
    return error.value


def test_what_may_be_asked_is_what_the_server_generates_by() -> None:
    assert set(URLS) == GENERATING


@pytest.mark.parametrize("url", URLS)
def test_a_request(url: str) -> None:
    request = read(text_of([line("a", url=url)]))
    assert (request.number, request.custom_id, request.url) == (1, "a", url)
    assert request.body["messages"][0]["content"] == "a"


CASES: dict[str, tuple[Any, str, str | None]] = {
    "no JSON": (b"{'custom_id': 1}", "invalid_json_line", None),
    "no text": (b'{"custom_id": "\xff"}', "invalid_json_line", None),
    "no object": (b"[1]", "invalid_json_line", None),
    "a name twice": (b'{"custom_id": "a", "custom_id": "b"}', "invalid_json_line", "custom_id"),
    "NaN": (b'{"custom_id": NaN}', "invalid_json_line", None),
    "deep": (b"[" * 900 + b"]" * 900, "invalid_json_line", None),
    "no custom_id": ({"method": "POST"}, "missing_custom_id", "custom_id"),
    "a number as custom_id": (line("a", custom_id=3), "missing_custom_id", "custom_id"),
    "an empty custom_id": (line(""), "missing_custom_id", "custom_id"),
    "a field that nobody knows": (line("a", priority=1), "unknown_field", "priority"),
    "GET": (line("a", method="GET"), "invalid_method", "method"),
    "a url that is not here": (line("a", url="/v1/embeddings"), "invalid_url", "url"),
    "a list as url": (line("a", url=[CHAT]), "invalid_url", "url"),
    "no body": (line("a", body=None), "invalid_body", "body"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_told_by_name(case: str) -> None:
    sent, code, param = CASES[case]
    error = wrong(sent if isinstance(sent, bytes) else json.dumps(sent).encode())
    assert (error.code, error.param) == (code, param)
    assert error.custom_id == ("a" if code not in ("invalid_json_line", "missing_custom_id") else None)


def test_lines_of_another_endpoint_are_wrong() -> None:
    assert wrong(text_of([line("a")]), "/v1/completions").code == "invalid_url"
    assert read(text_of([line("a")]), CHAT).url == CHAT


def test_the_second_use_of_a_custom_id_is_wrong_and_the_first_is_not() -> None:
    requests = [one for _, one in checked_lines(io.BytesIO(text_of([line("a"), line("b"), line("a")])), MOST)]
    assert [type(one) for one in requests] == [Line, Line, BadLine]
    assert isinstance(requests[2], BadLine) and (requests[2].code, requests[2].custom_id) == (
        "duplicate_custom_id",
        "a",
    )


def test_lines_are_found_again_by_their_place() -> None:
    text = b"\xef\xbb\xbf" + text_of([line("a")]) + b"\r\n \n" + text_of([line("b")]) + text_of([line("c")])[:-1]
    raws = list(raw_lines(io.BytesIO(text), MOST))
    assert [raw.number for raw in raws] == [1, 4, 5]
    assert [text[raw.offset : raw.offset + raw.size] for raw in raws] == [raw.text for raw in raws]
    assert [read_line(raw).custom_id for raw in raws] == ["a", "b", "c"]


def test_a_line_that_is_too_long_is_wrong_and_those_behind_it_are_not() -> None:
    long = text_of([line("a", body={"prompt": "x" * 200_000})])
    raws = list(raw_lines(io.BytesIO(long + text_of([line("b")]) + long), MOST))
    assert [raw.text is None for raw in raws] == [True, False, True]
    assert raws[1].offset == len(long) == raws[0].size
    with pytest.raises(BadLine, match=f"{len(long)} bytes"):
        read_line(raws[0])


def test_a_seed_is_of_the_batch_and_the_name_alone() -> None:
    def seed(custom_id: str, of_batch: int, **body: Any) -> int:
        return int(json.loads(Line(1, custom_id, CHAT, body).seeded(of_batch))["seed"])

    assert seed("a", 1) == seed("a", 1, temperature=1) == seed("a", 1, seed=None)
    assert len({seed("a", 1), seed("b", 1), seed("a", 2)}) == 3
    assert seed("a", 1, seed=5) == 5 and seed("\ud800", 1) >= 0
    assert all(0 <= seed(str(name), 3) < 2**31 for name in range(100))


def test_answers_are_written_as_they_came() -> None:
    output = json.loads(answered("id", "a", Answer(200, "r", '{"text": "é\\n"}'.encode())))
    assert output == {
        "id": "id",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "r", "body": {"text": "é\n"}},
        "error": None,
    }
    page = json.loads(answered("id", "a", Answer(502, "r", b"<html>")))
    assert page["response"]["body"]["error"]["message"] == "<html>"
    lone = answered("id", "a", Answer(200, "r", b'{"text": "\\ud800"}'))
    assert json.loads(lone.encode())["response"]["body"]["text"] == "\ud800"
    refused = json.loads(unanswered("id", None, "invalid_url", "why"))
    assert refused["response"] is None and refused["error"] == {"code": "invalid_url", "message": "why"}
    assert "\n" not in lone
