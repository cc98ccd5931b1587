"""A server behind Ray Serve's HAProxy, with its engine in one process: a contender of `hop.py`.

    python -m benchmarks.cluster.haproxy

Prints `ready URL`, and serves until SIGTERM.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile

from baton.cluster.environment import prepare


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    prepare(os.environ, alone=True)
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    import ray
    from ray import serve

    from baton.cli.serve_whole import build

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="baton-ray-", dir="/tmp") as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            object_store_memory=256 * 2**20,
        )
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            serve.run(build({"replica_cpus": "1", "max_batch_size": "8"}), name="baton", route_prefix="/")
            print(f"ready http://127.0.0.1:{port}", flush=True)
            signal.pause()
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
