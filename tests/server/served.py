"""A server process over a scripted engine, for tests that send it signals.

`served.py MEGABYTES DRAIN_SECONDS [LIMITS [FOLDER]]`: each query gets so much at once and is then held; below zero it
is answered. Limits are a JSON object. The folder keeps batches.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import baton.server.run
from baton.core.limits import Limits
from baton.jobs.folder import Folder
from baton.server.run import bind, serve
from server.scripted import ScriptedLoop, app_of

if __name__ == "__main__":
    if "THROUGH_FRONT" in os.environ:
        import through_front  # it imports torch

        through_front.begin(os.environ["THROUGH_FRONT"])
    loop = ScriptedLoop()
    megabytes = float(sys.argv[1])
    loop.held, loop.opening = megabytes >= 0, "x" * int(megabytes * 2**20)
    baton.server.run.CLOSE_SECONDS = 1
    limits = Limits(**json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}"))
    folder = Folder(Path(sys.argv[4]), limits) if len(sys.argv) > 4 else None
    app = app_of(loop, limits, batches=folder)
    serve(
        app,
        bind("127.0.0.1", 0),
        drain=app.state.drain,
        drain_timeout_seconds=float(sys.argv[2]),
        limits=limits,
        on_started=lambda url: print(url, flush=True),
    )
    loop.close()
    print("clean", flush=True)
