"""Access: keys, names in Host, origins; and how the settings for them are read."""

from __future__ import annotations

import logging
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.core.config import Config, load_config, make_config
from baton.core.errors import SettingError
from baton.core.settings import server_settings
from baton.server.app import PAGE_FILES
from baton.server.auth import Access, access_of
from server.scripted import ScriptedLoop, app_of

ORIGIN = "https://pages.example"
LOCAL = access_of(server_settings(Config()), "127.0.0.1")


@asynccontextmanager
async def talking_to(loop: ScriptedLoop, access: Access) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app_of(loop, access=access), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


# Keys


async def test_any_of_several_keys_opens_every_route_and_nothing_else_does(loop: ScriptedLoop) -> None:
    async with talking_to(loop, Access(keys=("one", "two"))) as http:
        document = (await http.get("/openapi.json", headers={"authorization": "Bearer one"})).json()
        for path, item in document["paths"].items():
            for method in item:
                path = path.replace("{model}", "any")
                kept_out = (await http.request(method, path)).status_code
                let_in = (await http.request(method, path, headers={"authorization": "Bearer two"})).status_code
                assert (kept_out, let_in != 401) == (200 if path == "/health" else 401, True), path
        for path in PAGE_FILES:
            assert (await http.get(path)).status_code == 200
        for wrong in (
            "Bearer on",
            "Bearer one two",
            "Bearer onetwo",
            "Bearer ",
            "Bearer",
            "one",
            "Basic one",
            "Token one",
        ):
            assert (await http.get("/version", headers={"authorization": wrong})).status_code == 401, wrong
        for right in ("Bearer one", "bearer two", "BEARER  one "):
            assert (await http.get("/version", headers={"authorization": right})).status_code == 200, right


async def test_unknown_paths_and_methods_tell_nothing_without_a_key(loop: ScriptedLoop) -> None:
    async with talking_to(loop, Access(keys=("one",))) as http:
        for method, path in (("GET", "/nothing"), ("DELETE", "/version"), ("OPTIONS", "/version"), ("GET", "/health/")):
            response = await http.request(method, path)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"


def test_keys_of_the_file_and_of_the_flag_hold_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\n  first, with a comma \nsecond\n")
    file.chmod(stat.S_IRUSR)
    config = load_config({"api_key": ("a,b", "c"), "api_key_file": str(file)}, environment={})
    assert access_of(server_settings(config), "127.0.0.1").keys == ("a", "b", "c", "first, with a comma", "second")
    assert not caplog.records
    file.chmod(stat.S_IRUSR | stat.S_IROTH)
    with caplog.at_level(logging.WARNING):
        access_of(server_settings(config), "127.0.0.1")
    assert str(file) in caplog.text and "chmod 600" in caplog.text and "first" not in caplog.text


@pytest.mark.parametrize("text", [None, "", "# only\n\n", b"\xff\xfe"])
def test_a_key_file_without_keys_stops_the_start(tmp_path: Path, text: str | bytes | None) -> None:
    """Or a server that was meant to ask for a key would ask for none."""
    file = tmp_path / "keys"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SettingError) as caught:
        access_of(server_settings(make_config({"api_key_file": str(file)})), "127.0.0.1")
    assert caught.value.param == "api_key_file" and str(file) in caught.value.message


@pytest.mark.parametrize("value", ["", " ", "secret-word,", ",secret-word", ["secret-word", ""], 1.5])
def test_an_empty_key_stops_the_start_and_no_error_tells_a_key(value: Any) -> None:
    with pytest.raises(SettingError) as caught:
        make_config({"api_key": value})
    assert caught.value.param == "api_key" and "secret-word" not in caught.value.message
    with pytest.raises(SettingError):
        load_config({}, environment={"BATON_API_KEY": ""})


def test_keys_come_from_environment_and_file_too(tmp_path: Path) -> None:
    file = tmp_path / "baton.toml"
    file.write_text('api-key = ["x", "y"]\ncors-origin = "https://a.example"\n')
    assert load_config({}, file=str(file), environment={}).api_key == ("x", "y")
    assert load_config({}, file=str(file), environment={"BATON_API_KEY": "p,q"}).api_key == ("p", "q")
    assert load_config({"api_key": ("f",)}, file=str(file), environment={"BATON_API_KEY": "p"}).api_key == ("f",)
    assert load_config({"api_key": ()}, file=str(file), environment={}).cors_origin == ("https://a.example",)


# Hosts


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:80",
        "localhost.",
        "a.localhost:1",
        "127.0.0.1",
        "127.0.0.1:80",
        "[::1]",
        "[::1]:80",
        "192.168.0.7:80",
        "host.docker.internal:8000",
        f"{socket.gethostname().partition('.')[0]}.local",
    ],
)
async def test_local_names_and_addresses_are_answered(loop: ScriptedLoop, host: str) -> None:
    async with talking_to(loop, LOCAL) as http:
        assert (await http.get("/version", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example",
        "rebound.example:8000",
        "localhost.rebound.example",
        "localhostx",
        "127.0.0.1.rebound.example",
        "",
        "localhost:port",
        "user@localhost",
        "localhost/x",
        "[::1",
        "[localhost]:80:80",
        "local\xe9host",
    ],
)
async def test_a_name_that_a_page_brought_along_is_refused(loop: ScriptedLoop, host: str) -> None:
    async with talking_to(loop, LOCAL) as http:
        for path in ("/", "/health", "/v1/models", "/nothing"):
            response = await http.get(path, headers=[(b"host", host.encode("latin-1"))])
            error = response.json()["error"]
            assert (response.status_code, error["type"], error["code"]) == (
                400,
                "invalid_request_error",
                "invalid_host",
            )
            assert "--allowed-host" in error["message"]


def test_when_names_are_checked() -> None:
    def hosts(address: str, **settings: Any) -> frozenset[str] | None:
        return access_of(server_settings(make_config(settings)), address).hosts

    for address in ("127.0.0.1", "127.8.8.8", "::1"):
        assert "localhost" in (hosts(address) or ())
        assert hosts(address, api_key="a") is None
        assert hosts(address, allowed_host="*") is None
    assert hosts("0.0.0.0") is None and hosts("192.168.0.7") is None and hosts("fe80::1%eth0") is None
    assert "mine" in (hosts("127.0.0.1", host="Mine") or ())
    for settings in ({}, {"api_key": "a"}, {"host": "0.0.0.0"}):
        names = hosts("0.0.0.0", allowed_host=["Api.Example", "b"], **settings)
        assert names is not None and {"api.example", "b", "localhost"} <= names


# Other origins


async def test_no_other_origin_may_read_answers_by_itself(loop: ScriptedLoop) -> None:
    async with talking_to(loop, Access()) as http:
        response = await http.get("/version", headers={"origin": ORIGIN})
        assert not [name for name in response.headers if name.startswith("access-control")]
        preflight = {"origin": ORIGIN, "access-control-request-method": "POST"}
        assert (await http.options("/v1/completions", headers=preflight)).status_code == 405


@pytest.mark.parametrize("allowed", [(ORIGIN,), ("https://other.example", ORIGIN), ("*",)])
async def test_an_allowed_origin_reads_answers_and_errors(loop: ScriptedLoop, allowed: tuple[str, ...]) -> None:
    told = "*" if allowed == ("*",) else ORIGIN
    async with talking_to(loop, Access(keys=("k",), origins=allowed)) as http:
        preflight = {
            "origin": ORIGIN,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        }
        response = await http.options("/v1/chat/completions", headers=preflight)
        assert response.status_code == 200, "browsers send no key beforehand"
        assert response.headers["access-control-allow-origin"] == told and response.headers["x-request-id"]
        assert "x-stainless-os" in response.headers["access-control-allow-headers"]
        loop.refuse = ZeroDivisionError()
        key = {"authorization": "Bearer k"}
        for status, headers, path in ((401, {}, "/version"), (404, key, "/no"), (431, {"x": "a" * 40_000}, "/version")):
            response = await http.get(path, headers={"origin": ORIGIN, **headers})
            assert response.status_code == status and response.headers["access-control-allow-origin"] == told
            assert "x-request-id" in response.headers["access-control-expose-headers"]
        response = await http.post("/v1/completions", json={"prompt": "a"}, headers={"origin": ORIGIN, **key})
        assert response.status_code == 500 and response.headers["access-control-allow-origin"] == told
        assert "access-control-allow-credentials" not in response.headers


async def test_another_origin_is_refused_beforehand(loop: ScriptedLoop) -> None:
    async with talking_to(loop, Access(origins=(ORIGIN,))) as http:
        preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        response = await http.options("/v1/completions", headers=preflight)
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
        assert "access-control-allow-origin" not in response.headers
        response = await http.get("/version", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in response.headers and response.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", ["a.example", "https://a.example/", "https://a.example/path", "null", "https://*", "//a"]
)
def test_what_is_no_origin_stops_the_start(origin: str) -> None:
    with pytest.raises(SettingError, match="--cors-origin"):
        access_of(server_settings(make_config({"cors_origin": origin})), "127.0.0.1")
