"""One log format for every program."""

from __future__ import annotations

import logging
import sys


def configure_logging(level: str) -> None:
    """Log lines to standard error: time, level, logger, message."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    for chatty in ("filelock", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
