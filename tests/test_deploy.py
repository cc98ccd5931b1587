"""`baton deploy`: its manifests are read by Ray Serve's own schema, and their settings by ours."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from baton.cli.deploy import IMPORT_PATH, WITHOUT_FRONTS
from baton.cli.main import cli
from baton.core.config import load_config
from baton.core.replicas import range_of
from kuberay_schema import POD, RAY_SERVICE

WORDS = ["deploy", "Qwen/Qwen3-0.6B", "--replicas", "1-8", "--replica-cpus", "6", "--max-batch-size", "8"]


def printed(*more: str) -> Any:
    done = CliRunner().invoke(cli, [*WORDS, *more])
    assert done.exit_code == 0, done.output
    return yaml.safe_load(done.output)


def test_the_service_for_kuberay() -> None:
    service = printed("--image", "here/baton:1", "--name", "chat")
    assert (service["kind"], service["metadata"]["name"]) == ("RayService", "chat")
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (1, 8)
    container = workers["template"]["spec"]["containers"][0]
    assert container["image"] == "here/baton:1" and container["resources"]["limits"]["cpu"] == "7"
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == printed("--as", "serve")


@pytest.mark.parametrize("more", [(), ("--prefill-replicas", "2", "--replica-gpus", "1"), ("--replicas", "3")])
def test_what_kuberay_reads_of_it(more: tuple[str, ...]) -> None:
    service = printed("--image", "here/baton:1", *more)
    jsonschema.validate(service, RAY_SERVICE)
    group = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    group["maxReplica"] = group.pop("maxReplicas")
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(service, RAY_SERVICE)


def test_engines_for_prompts_are_a_deployment_of_their_own() -> None:
    words = ("--prefill-replicas", "2", "--replica-handover", "tokens")
    (app,) = printed("--as", "serve", *words)["applications"]
    assert [known["name"] for known in app["deployments"]] == ["front", "engine", "prefill"]
    assert app["deployments"][2]["num_replicas"] == 2
    config = load_config(app["args"], environment={})
    assert (config.prefill_replicas, config.replica_handover) == (2, "tokens")
    workers = printed(*words)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (3, 10)


def test_without_fronts_engines_take_the_requests() -> None:
    (app,) = printed("--as", "serve", "--no-resume")["applications"]
    module, _, function = app["import_path"].partition(":")
    assert app["import_path"] == WITHOUT_FRONTS and function == "build"
    assert importlib.util.find_spec(module) is not None
    assert [known["name"] for known in app["deployments"]] == ["engine"]
    assert app["deployments"][0]["autoscaling_config"]["max_replicas"] == 8
    jsonschema.validate(printed("--no-resume"), RAY_SERVICE)


def test_servers_behind_an_endpoint_picker() -> None:
    """Names that refer to one another do, and the command is one of ours."""
    documents = yaml.safe_load_all((Path(__file__).parents[1] / "deploy/kubernetes/gateway.yml").read_text())
    kinds = {document["kind"]: document for document in documents}
    assert set(kinds) == {"Deployment", "InferencePool", "HTTPRoute"}
    template, pool = kinds["Deployment"]["spec"]["template"], kinds["InferencePool"]
    jsonschema.validate(template, POD)
    (container,) = template["spec"]["containers"]
    port = pool["spec"]["targetPorts"][0]["number"]
    assert port == container["ports"][0]["containerPort"]
    labels = pool["spec"]["selector"]["matchLabels"]
    assert labels == template["metadata"]["labels"] == kinds["Deployment"]["spec"]["selector"]["matchLabels"]
    (backend,) = kinds["HTTPRoute"]["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == (pool["kind"], pool["metadata"]["name"])
    assert pool["apiVersion"] == f"{backend['group']}/v1"
    program, verb, model, *flags = container["command"]
    assert (program, verb) == ("baton", "serve")
    given = dict(zip((flag[2:].replace("-", "_") for flag in flags[::2]), flags[1::2], strict=True))
    config = load_config({"model": model, **given}, environment={})
    assert (config.port, config.metrics_compat) == (port, "vllm")
    assert template["spec"]["terminationGracePeriodSeconds"] > config.drain_timeout


def test_what_serve_is_told_is_read_by_our_settings() -> None:
    (app,) = printed("--as", "serve")["applications"]
    config = load_config(app["args"], environment={})
    assert (config.model, config.max_batch_size, config.replica_cpus) == ("Qwen/Qwen3-0.6B", "8", "6")
    assert range_of(config.replicas or "") == (1, 8)
    module, _, function = app["import_path"].partition(":")
    assert app["import_path"] == IMPORT_PATH and function == "build"
    assert importlib.util.find_spec(module) is not None


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="there is no Ray")
def test_serves_schema_takes_it(tmp_path: Any) -> None:
    file = tmp_path / "serve.yml"
    some = [
        printed("--as", "serve", "--fronts", "2", "--prefill-replicas", "1"),
        printed("--as", "serve", "--no-resume"),
    ]
    file.write_text(yaml.safe_dump_all(some))
    read = (
        "import sys, yaml; from ray.serve.schema import ServeDeploySchema as S;"
        "[S(**one) for one in yaml.safe_load_all(open(sys.argv[1]))]"
    )
    done = subprocess.run([sys.executable, "-c", read, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--name", "Big Name"], "--name Big Name"),
        (["--replicas", "8-1"], "range like 1-8"),
        (["--policy", "fifo"], "there is baton, orca"),
        (["--quantize", "int8", "--no-compile"], "leave out --no-compile"),
        (["--no-resume", "--fronts", "2"], "--no-resume has none"),
        (["--no-resume", "--losses", "3"], "--losses is what fronts do"),
    ],
)
def test_what_cannot_be_deployed_is_refused(words: list[str], complaint: str) -> None:
    done = CliRunner().invoke(cli, [*WORDS, *words])
    assert complaint in str(done.exception)
