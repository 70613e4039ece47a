"""From nothing to an engine with its weights in main memory: at once, or as a spare that waits for its device."""

from __future__ import annotations

import logging
import os
import time
from typing import NamedTuple

import psutil
from setproctitle import setproctitle

from configs.paths import children_dir, controller_pid_file, standby_files
from configs.settings import Settings
from worker.engine import StepEngine
from worker.engines.factory import build
from worker.standby import keep_calm, wait
from worker.startup_times import Stopwatch

log = logging.getLogger(__name__)


class Fetched(NamedTuple):
    """An engine whose device has not been touched yet."""

    engine: StepEngine
    #: Where it is to serve: `cpu:N`, `cuda:N` or `sim:N`.
    device: str
    watch: Stopwatch


def fetch(settings: Settings, model: str, name: str, device: str) -> Fetched:
    """Load for this device. Raises `UnsupportedModel`, or what else the engine raises."""
    watch = Stopwatch(psutil.Process().create_time())
    setproctitle(f"muster worker {name} {model} {device}")
    log.info("loading %s on %s", model, device)
    engine = build(settings.models[model], _visible(device))
    watch.lap("import_s")
    engine.fetch()
    watch.lap("load_s")
    return Fetched(engine, device, watch)


def stand_by(settings: Settings, model: str, name: str, device: str) -> Fetched:
    """As `fetch`, but for whatever device of this kind the controller will name, and not before it has."""
    keep_calm()
    watch = Stopwatch(psutil.Process().create_time())
    setproctitle(f"muster spare {name} {model}")
    kind = device.partition(":")[0]
    log.info("loading %s, for a device to be named", model)
    engine = build(settings.models[model], f"{kind}:0")
    watch.lap("import_s")
    engine.fetch()
    watch.lap("load_s")
    loaded_at = time.time()
    log.info("standing by")
    files = standby_files(children_dir(settings.data_dir), name)
    called = wait(files, controller_pid_file(settings.data_dir), settings.workers.orphan_after_s)
    if called.at > loaded_at:  # else it never stood by, and its start was one from nothing
        watch = Stopwatch(called.at, standby=True)
    setproctitle(f"muster worker {name} {model} {called.device}")
    log.info("called to serve on %s", called.device)
    if kind == "cuda":
        # The driver reads it when it is first used, which is later. The device is the only one then, and number 0.
        os.environ["CUDA_VISIBLE_DEVICES"] = called.device.partition(":")[2]
    return Fetched(engine, called.device, watch)


def _visible(device: str) -> str:
    """The device by the number that torch gives it: the first, where the launcher shows this process only one."""
    pinned = len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    return "cuda:0" if device.startswith("cuda") and pinned else device
