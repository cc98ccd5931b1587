"""`baton.cli.serve_whole:build`, for `serve deploy` and KubeRay: engines with servers of their own, without fronts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton import __version__
from baton.cli.serve_replica import EngineReplica
from baton.cli.serve_replicas import placing_of, replica_values
from baton.cluster.ray_whole import application
from baton.core.clock import monotonic
from baton.core.config import load_config
from baton.core.events import QueryRejected
from baton.core.settings import server_settings
from baton.server.app import create_app
from baton.server.auth import access_of

_ANYWHERE = "0.0.0.0"


class ServerReplica(EngineReplica):
    """An engine and its server; see `cluster/ray_whole.py`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """`values`: settings. Keys come from `BATON_API_KEY` of this process. Raises SettingError and LoadError."""
        config = load_config({**values, "api_key": None})
        super().__init__(values)
        client, metrics = self._client, self._metrics
        server = server_settings(config)
        self.app = create_app(
            client,
            render_metrics=lambda: metrics.render(client.stats()),
            live=self._view,
            version=__version__,
            access=access_of(server, _ANYWHERE),
            reject=lambda code: metrics(QueryRejected(monotonic(), code)),
            ignore=metrics.fields_ignored,
        )
        self.app.openapi()  # made once now, because making it later would hold up the event loop


def build(args: Mapping[str, Any]) -> Any:
    """The application by these settings; others come from `BATON_*` of the environment. Raises SettingError."""
    config = load_config({"replicas": "1", **args})
    placing = placing_of(config)
    return application(ServerReplica, replica_values(config, placing.cpus or 1), placing)
