"""`baton serve`: takes its port and its keys first, and imports torch only when it has both."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from baton.cluster.environment import check_installed, prepare
from baton.core.config import Config
from baton.core.settings import limits_of, server_settings
from baton.jobs.folder import Folder
from baton.server.auth import access_of
from baton.server.run import bind


def run_server(config: Config, began: float) -> None:
    """Binds, loads, and serves until told to end. `began`: when the command started, on time.perf_counter.

    The port is bound from here on, so that nobody can take it while the model is loaded.
    """
    server = server_settings(config)
    with contextlib.ExitStack() as held:
        bound = held.enter_context(bind(server.host, server.port))
        access = access_of(server, bound.getsockname()[0])
        if config.models:
            from baton.cli.serve_several import run_several

            run_several(config, server, bound, access, began)
            return
        batches = None
        if server.batch_dir is not None:
            batches = held.enter_context(contextlib.closing(Folder(Path(server.batch_dir), limits_of(config))))
        if config.replicas is not None:
            check_installed()
            prepare(os.environ, alone=config.ray_address is None)
            from baton.cli.serve_replicas import run_replicas

            run_replicas(config, server, bound, access, began, batches)
            return
        from baton.cli.serve_engine import run_bound

        run_bound(config, server, bound, access, began, batches)
