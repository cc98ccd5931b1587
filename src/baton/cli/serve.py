"""`baton serve`: takes its port and its keys first, and imports torch only when it has both."""

from __future__ import annotations

from baton.core.config import Config
from baton.core.settings import server_settings
from baton.server.auth import access_of
from baton.server.run import bind


def run_server(config: Config, began: float) -> None:
    """Binds, loads, and serves until told to end. `began`: when the command started, on time.perf_counter.

    The port is bound from here on, so that nobody can take it while the model is loaded.
    """
    server = server_settings(config)
    bound = bind(server.host, server.port)
    try:
        access = access_of(server, bound.getsockname()[0])
        if config.models:
            from baton.cli.serve_several import run_several

            run_several(config, server, bound, access, began)
            return
        from baton.cli.serve_engine import run_bound

        run_bound(config, server, bound, access, began)
    finally:
        bound.close()
