"""GET /live/data: what the live page draws, from where it left off; and who may have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from baton.server.auth import Access
from baton.server.live import LiveView
from server.scripted import ScriptedLoop, app_of
from server.watched import SIGHT, live_of


def client_of(loop: ScriptedLoop, **more: Any) -> httpx.AsyncClient:
    live = live_of()
    app = app_of(loop, live=lambda serial, time: live.data(SIGHT, serial, time), **more)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


async def test_first_all_and_then_what_is_new(loop: ScriptedLoop) -> None:
    async with client_of(loop) as http:
        response = await http.get("/live/data")
        assert response.status_code == 200 and response.headers["cache-control"] == "no-store"
        first = LiveView.model_validate(response.json())
        assert {stay[0] for stay in first.stays} == {"q-1", "q-2", "q-3"} and len(first.buckets["at"]) > 70
        again = await http.get("/live/data", params={"serial": first.serial, "time": first.buckets["at"][-1] or 0})
        news = LiveView.model_validate(again.json())
        assert news.stays == [] and news.buckets["at"] == first.buckets["at"][-1:]
        assert news.run == first.run


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("serial=-1", "serial"),
        ("serial=1.5", "serial"),
        ("serial=", "serial"),
        ("serial=9007199254740993", "serial"),
        ("serial=" + "9" * 5000, "serial"),
        ("serial=٣", "serial"),
        ("serial=1&serial=2", "serial"),
        ("time=-0.5", "time"),
        ("time=nan", "time"),
        ("time=inf", "time"),
        ("time=1_0", "time"),
        ("time=x", "time"),
        ("since=1", "since"),
    ],
    ids=lambda value: value[:30],
)
async def test_bad_parameters_are_refused_by_name(loop: ScriptedLoop, query: str, param: str) -> None:
    async with client_of(loop) as http:
        response = await http.get(f"/live/data?{query}")
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", param)


async def test_the_page_is_open_and_what_it_draws_needs_the_key(loop: ScriptedLoop) -> None:
    async with client_of(loop, access=Access(keys=("sesame",))) as http:
        page = await http.get("/live")
        assert page.status_code == 200 and "script-src 'self'" in page.headers["content-security-policy"]
        assert (await http.get("/live/data")).json()["error"]["code"] == "invalid_api_key"
        assert (await http.get("/live/data", headers={"authorization": "Bearer sesame"})).status_code == 200


async def test_it_is_declared(loop: ScriptedLoop) -> None:
    live = live_of()
    document: Mapping[str, Any] = app_of(loop, live=lambda serial, time: live.data(SIGHT, serial, time)).openapi()
    route = document["paths"]["/live/data"]["get"]
    assert {parameter["name"] for parameter in route["parameters"]} == {"serial", "time"}
    assert set(route["responses"]) == {"200", "400", "408", "431", "500"}
    assert route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/LiveView")


async def test_without_a_live_view_there_is_none(http: httpx.AsyncClient) -> None:
    assert (await http.get("/live")).status_code == 200
    assert (await http.get("/live/data")).status_code == 404


async def test_of_several_engines_one_is_named() -> None:
    def told(serial: int, time: float, replica: str) -> bytes:
        return json.dumps({"serial": serial, "replica": replica or "a", "replicas": ["a", "b"]}).encode()

    app = app_of(ScriptedLoop(), live_of=told)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        assert (await http.get("/live/data")).json()["replica"] == "a"
        assert (await http.get("/live/data?serial=3&replica=b")).json() == {
            "serial": 3,
            "replica": "b",
            "replicas": ["a", "b"],
        }
        assert (await http.get("/live/data?engine=b")).status_code == 400
    parameters = app.openapi()["paths"]["/live/data"]["get"]["parameters"]
    assert [known["name"] for known in parameters] == ["serial", "time", "replica"]
