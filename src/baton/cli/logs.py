"""What is logged, and by whom."""

from __future__ import annotations

import logging


def start_logging(level: str) -> None:
    """Logs to stderr from this level on; libraries that tell of each request are quiet."""
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpcore", "huggingface_hub", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
