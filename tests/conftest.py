"""Fixtures that several test modules share."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from scripts.harness.balancer import Server, running, sim

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Until all tests are collected: looking for garbage among what imports build would double their time.
gc.disable()
# Before any library reads it: tests ask no model hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"
# Each client of httpx would read the certificates of all public authorities: 20 ms. This folder has none.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# Machines differ in speed, and the first text that hypothesis makes in a fresh checkout takes it a second.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in each run: no change fails by an older fault. `--hypothesis-profile=random` tries others.
settings.register_profile("muster", settings.get_profile("random"), derandomize=True)
settings.load_profile("muster")

StartServer = Callable[..., Server]


def pytest_collection_finish() -> None:
    """Keep what has been imported out of every search for garbage from now on."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StartServer]:
    """`server(models=..., workers=..., **settings)` starts a balancer with workers; all end with the test.

    Without `models` it serves one quick simulated model named `sim`.
    """
    with contextlib.ExitStack() as stack:

        def start(
            models: Mapping[str, Any] | None = None, workers: Mapping[str, int] | int = 1, **settings: Any
        ) -> Server:
            number = len(list(tmp_path.iterdir()))
            data_dir = tmp_path / f"data{number}"
            return stack.enter_context(running(data_dir, models or {"sim": sim()}, workers, **settings))

        yield start
