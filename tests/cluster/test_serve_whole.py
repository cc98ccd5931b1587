"""`baton.cli.serve_whole`: what Ray Serve runs where no front is wanted, here without Ray Serve."""

from __future__ import annotations

import importlib.util

import pytest

from warm import WarmProcess

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="there is no Ray")

# In a process of its own, because Ray reads the environment when it is imported.
PROGRAM = """
import httpx
from baton.cli.serve_whole import ServerReplica, build
from server.listening import listening
assert build({"replica_cpus": "1"}) is not None
replica = ServerReplica({"threads": "1", "max_batch_size": "2"})
with listening(replica.app) as url:
    asked = {"prompt": "Hello", "max_tokens": 4, "ignore_eos": True}
    print(httpx.post(f"{url}/v1/completions", json=asked, timeout=60).status_code)
    key = {"authorization": "Bearer secret"}
    answer = httpx.post(f"{url}/v1/completions", json=asked, headers=key, timeout=60).json()
    print(answer["usage"]["completion_tokens"], replica.trouble(), replica.rows_wanted() > 0)
    page = httpx.get(f"{url}/metrics", headers=key, timeout=60).text
    finished = [line for line in page.splitlines() if "queries_total{" in line and "finished" in line]
    print(finished[-1].split()[-1])
replica.close()
"""


def test_an_engine_has_a_server_of_its_own_with_keys_from_its_environment() -> None:
    process = WarmProcess(["-c", PROGRAM], stdout=True, together=True, environment={"BATON_API_KEY": "secret"})
    assert process.stdout is not None
    said = process.stdout.read().splitlines()
    assert said[-3:] == ["401", "4 None True", "1.0"], said
