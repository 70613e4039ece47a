"""The log format of all programs."""

from __future__ import annotations

import logging
import sys


def configure_logging(level: str) -> None:
    """Write log lines to standard error: time, level, logger, message."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    for verbose in ("filelock", "asyncio"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
