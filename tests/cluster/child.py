"""An engine in a process of its own, for a front that talks to it through pipes: a line of JSON for each message."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from baton.cluster.wire import introduction, name_of
from baton.compose import open_engine
from baton.core.config import make_config
from baton.fronts import introduced, served_engine
from cluster.folder_depot import FolderDepot

if __name__ == "__main__":
    lock, out = threading.Lock(), sys.stdout

    def send(message: Any) -> None:
        with lock:
            print(json.dumps(message), file=out, flush=True)

    engine = open_engine(make_config(json.loads(sys.argv[1])))
    send(introduction(introduced(engine)))
    served = served_engine(engine, send, FolderDepot(sys.argv[2]))
    for line in sys.stdin:
        verb, *given = json.loads(line)
        if verb == "start":
            send({"took": [name_of(ask) for ask in given[0]]})
        getattr(served, verb)(*given)
    served.close()
    engine.close()
