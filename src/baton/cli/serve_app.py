"""`baton.cli.serve_app:build`, for `serve deploy` and KubeRay: fronts behind Ray Serve's proxy, and engines."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from baton.cli.serve_replica import EngineReplica
from baton.cli.serve_replicas import front_app, placing_of, replica_values
from baton.cluster.ray_app import application
from baton.cluster.ray_engines import RayEngines
from baton.cluster.wire import About
from baton.core.config import Config, load_config
from baton.core.settings import server_settings
from baton.fronts import open_front
from baton.server.auth import access_of

_ANYWHERE = "0.0.0.0"


def build(args: Mapping[str, Any]) -> Any:
    """The application by these settings; others come from `BATON_*` of the environment. Raises SettingError."""
    config = load_config({"replicas": "1", **args})
    placing = placing_of(config)
    return application(partial(_front, config), EngineReplica, replica_values(config, placing.cpus or 1), placing)


def _front(config: Config, engines: RayEngines, about: About) -> Any:
    server = server_settings(config)
    client = open_front(config, engines, about)
    client.prepare()
    return front_app(server, access_of(server, _ANYWHERE), client, engines)
