"""`baton deploy`: prints what a cluster is to run, made of the same flags as `baton serve --replicas`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from baton.cli.refuse import refuse_settings
from baton.core.config import AUTO, Config, named_models
from baton.core.errors import SettingError
from baton.core.replicas import Range, range_of

IMPORT_PATH, WITHOUT_FRONTS = "baton.cli.serve_app:build", "baton.cli.serve_whole:build"
# What Serve and the machines are told besides, or what is no engine's and no front's.
_NOT_ARGUMENTS = {"replicas", "replica_cpus", "replica_gpus", "ray_address", "host", "port", "api_key", "api_key_file"}
_NOT_IN_PODS = {"api_key": "put it in a Secret, as BATON_API_KEY of the pods", "batch_dir": "no pod keeps a folder"}
_CPUS = 4
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,40}[a-z0-9])?")


def manifest(config: Config, form: str, *, image: str, fronts: int, name: str, resume: bool = True) -> str:
    """The manifest, in YAML. Raises SettingError.

    `form`: "rayservice" for KubeRay, or "serve" for `serve deploy`. `fronts`: replicas of the HTTP server. `resume`:
    streams outlive their engine; else engines have servers of their own, and there are no fronts.
    """
    if not resume:
        _refuse_fronts(config, fronts)
    for setting, why in _NOT_IN_PODS.items():
        if getattr(config, setting):
            raise SettingError(f"--{setting.replace('_', '-')}: not in a manifest, {why}", param=setting)
    if not _NAME.fullmatch(name):
        raise SettingError(f"--name {name}: small letters, digits, - and . alone", param="name")
    refuse_settings(config)
    named_models(config)
    served = _serve(config, fronts if resume else 0)
    return served if form == "serve" else _ray_service(config, served, image=image, name=name)


def arguments(config: Config) -> dict[str, Any]:
    """The settings that differ from their defaults, as `serve_app.build` takes them."""
    here = Config()
    values = {known.name: getattr(config, known.name) for known in dataclasses.fields(Config)}
    if config.model is not None and os.path.exists(config.model):
        values["model"] = os.path.abspath(config.model)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name not in _NOT_ARGUMENTS and value != getattr(here, name)
    }


def _refuse_fronts(config: Config, fronts: int) -> None:
    """Raises SettingError for what only a front does."""
    here = Config()
    for name in ("prefill_replicas", "replica_handover", "losses"):
        if getattr(config, name) != getattr(here, name):
            message = f"--{name.replace('_', '-')} is what fronts do, and --no-resume has none"
            raise SettingError(message, param=name)
    if fronts != 1:
        raise SettingError("--fronts: --no-resume has none", param="fronts")


def _serve(config: Config, fronts: int) -> str:
    """`fronts`: 0 for none, where each engine has its server."""
    replicas = range_of(config.replicas or "1")
    cpus, gpus = _cpus(config), _gpus(config)
    given = {**arguments(config), "replicas": config.replicas or "1", "replica_cpus": str(cpus)}
    lines = [
        "proxy_location: EveryNode",
        "http_options: {host: 0.0.0.0, port: 8000, request_timeout_s: null}",
        "applications:",
        "  - name: baton",
        "    route_prefix: /",
        f"    import_path: {IMPORT_PATH if fronts else WITHOUT_FRONTS}",
        f"    args: {json.dumps(given)}",
        "    deployments:",
    ]
    if fronts:
        lines += ["      - name: front", f"        num_replicas: {fronts}", "        ray_actor_options: {num_cpus: 1}"]
    lines += [
        "      - name: engine",
        f"        ray_actor_options: {{num_cpus: {cpus}, num_gpus: {gpus}}}",
    ]
    lines += _scaling(replicas)
    if config.prefill_replicas:
        lines += [
            "      - name: prefill",
            f"        num_replicas: {config.prefill_replicas}",
            f"        ray_actor_options: {{num_cpus: {cpus}, num_gpus: {gpus}}}",
        ]
    return "\n".join(lines) + "\n"


def _scaling(replicas: Range) -> list[str]:
    if not replicas.scales:
        return [f"        num_replicas: {replicas.least}"]
    bounds = {"min_replicas": replicas.least, "max_replicas": replicas.most, "upscale_delay_s": 15}
    policy = {"policy_function": "baton.cluster.ray_wanted:wanted"}
    scaling = {**bounds, "downscale_delay_s": 120, "look_back_period_s": 15, "policy": policy}
    return [f"        autoscaling_config: {json.dumps(scaling)}"]


def _ray_service(config: Config, served: str, *, image: str, name: str) -> str:
    replicas, cpus, gpus = range_of(config.replicas or "1"), _cpus(config), _gpus(config)
    indented = "".join(f"    {line}\n" for line in served.splitlines())
    taken = {"cpu": str(cpus + 1), "memory": "16Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    grace = int(config.drain_timeout) + 30
    return _RAY_SERVICE.format(
        name=name,
        served=indented,
        image=json.dumps(image),
        environment=_environment(_ENVIRONMENT),
        workers=_environment({**_ENVIRONMENT, "HF_HOME": "/models"}),
        least=replicas.least + config.prefill_replicas,
        most=replicas.most + config.prefill_replicas,
        grace=grace,
        taken=json.dumps(taken),
    )


def _environment(variables: Mapping[str, str]) -> str:
    return json.dumps([{"name": name, "value": value} for name, value in variables.items()])


def _cpus(config: Config) -> int:
    return _CPUS if config.replica_cpus == AUTO else int(config.replica_cpus)


def _gpus(config: Config) -> int:
    return 0 if config.device == "cpu" or config.replica_gpus == AUTO else int(config.replica_gpus)


_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Serve's own proxy costs half of the throughput; HAProxy as good as none.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_worker_niceness": "0",
}
_RAY_SERVICE = """\
# For KubeRay's operator. Models come by the volume claim `models`, never in the image.
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: {name}
spec:
  upgradeStrategy: {{type: NewCluster}}
  serveConfigV2: |
{served}  rayClusterConfig:
    rayVersion: "2.60.0"
    enableInTreeAutoscaling: true
    headGroupSpec:
      rayStartParams: {{num-cpus: "0"}}
      template:
        spec:
          containers:
            - name: ray-head
              image: {image}
              env: {environment}
              resources: {{requests: {{cpu: "1", memory: 4Gi}}, limits: {{cpu: "2", memory: 4Gi}}}}
              ports:
                - {{containerPort: 6379, name: gcs-server}}
                - {{containerPort: 8265, name: dashboard}}
                - {{containerPort: 8000, name: serve}}
    workerGroupSpecs:
      - groupName: engines
        replicas: {least}
        minReplicas: {least}
        maxReplicas: {most}
        rayStartParams: {{}}
        template:
          spec:
            terminationGracePeriodSeconds: {grace}
            volumes:
              - {{name: models, persistentVolumeClaim: {{claimName: models}}}}
              - {{name: shm, emptyDir: {{medium: Memory, sizeLimit: 4Gi}}}}
            containers:
              - name: ray-worker
                image: {image}
                env: {workers}
                resources: {{requests: {taken}, limits: {taken}}}
                volumeMounts: [{{name: models, mountPath: /models}}, {{name: shm, mountPath: /dev/shm}}]
"""
