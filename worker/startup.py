"""The start of an engine: loads its weights, at once or as a standby worker, moves them to the device, and measures.

The phases are timed. A start that takes long is logged with the place where it is.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import psutil

from configs.checkpoint_files import checkpoint_problems
from configs.model_settings import Model
from configs.paths import cache_dir, children_dir, controller_pid_file, standby_files
from configs.pipeline_defaults import PipelineDefaults, with_defaults
from configs.settings import Settings
from configs.text import printable
from wire.messages import StartupTimes
from worker.batch_size import BUCKETS, BatchSizer
from worker.calibration import measure
from worker.engine import DeviceLost, HoldsWeights, StepEngine, TaskError, UnsupportedModel
from worker.engines.factory import build
from worker.imports import without_garbage_collection
from worker.stack_traces import log_if_slow
from worker.standby import block_activation_signal, wait_for_activation

try:
    from setproctitle import setproctitle
except ImportError:  # in the environment of an engine: only the name in the list of processes is missing

    def setproctitle(title: str) -> None:
        del title


log = logging.getLogger(__name__)

_MAX_REASON = 1000
#: Part of `workers.start_timeout_s` after which a start is logged. At the whole, the controller ends it.
_SLOW = 0.8


class Stopwatch:
    """Times consecutive phases: each starts where the one before it ended."""

    def __init__(self, started: float, *, standby: bool = False) -> None:
        """`started` is Unix time; the time from then until now is `spawn_s`."""
        self.times = StartupTimes(spawn_s=max(time.time() - started, 0.0), standby=standby)
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        """End the phase with this field name of `StartupTimes`."""
        now = time.monotonic()
        self.times = msgspec.structs.replace(self.times, **{phase: now - self._last})
        self._last = now

    def __str__(self) -> str:
        times = self.times
        parts = {
            "spawn": times.spawn_s,
            "import": times.import_s,
            "load": times.load_s,
            "to device": times.device_s,
            "warm-up": times.warm_up_s,
        }
        return ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items() if seconds >= 0.005)


class LoadedEngine(NamedTuple):
    """An engine that has not used its device yet."""

    engine: StepEngine
    #: `cpu:N`, `cuda:N` or `sim:N`.
    device: str
    stopwatch: Stopwatch


class StartFailed(Exception):
    """The model cannot be loaded, or not on this device. The text is one line for the operator."""


@contextlib.contextmanager
def start_failures() -> Iterator[None]:
    """Raises `StartFailed` in place of any exception but `DeviceLost`."""
    try:
        yield
    except (StartFailed, DeviceLost):
        raise
    except (Exception, SystemExit) as error:  # an engine of a user may do anything
        raise StartFailed(_explain(error)) from error


def _explain(error: BaseException) -> str:
    """Return one line that says what is wrong."""
    if isinstance(error, UnsupportedModel | TaskError):  # TaskError: the model's own defaults are invalid for it
        text = str(error)
    elif isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, ImportError):
        text = f"a library is missing: {error}"
    elif isinstance(error, MemoryError):
        text = "the main memory of this machine does not suffice"
    else:
        text = f"{type(error).__name__}: {error}"
    return printable(" ".join(text.split()), _MAX_REASON)


def with_engine_limits(model: Model, engine: StepEngine) -> Model:
    """Return the settings with the engine's own limits in place of those that are not configured."""
    limits, batching = engine.limits(), model.batching
    if batching.batch_wait_ms is None:
        batching = batching.model_copy(update={"batch_wait_ms": limits.batch_wait_ms})
    size = model.max_batch_size
    if size == "auto" and limits.max_batch_size is not None:
        size = limits.max_batch_size
    model = model.model_copy(update={"batching": batching, "max_batch_size": size})
    found = engine.info().defaults
    return with_defaults(model, None if found is None else PipelineDefaults(*msgspec.structs.astuple(found)))


def load(settings: Settings, model: str, name: str, device: str) -> LoadedEngine:
    """Load for this device. Raises `StartFailed`."""
    setproctitle(f"muster worker {name} {model} {device}")
    log.info("loading %s on %s", model, device)
    with _log_if_slow(settings, 0.0):
        engine, stopwatch = _fetch(settings, model, _visible(device))
    return LoadedEngine(engine, device, stopwatch)


def load_standby(settings: Settings, model: str, name: str, device: str) -> LoadedEngine:
    """Load for any device of this kind, then wait until the controller assigns one. Raises `StartFailed`."""
    block_activation_signal()
    setproctitle(f"muster spare {name} {model}")
    kind = device.partition(":")[0]
    log.info("loading %s as a standby worker", model)
    engine, stopwatch = _fetch(settings, model, f"{kind}:0")
    if isinstance(engine, HoldsWeights):
        with start_failures():
            engine.hold_weights()
    loaded_at = time.time()
    log.info("standing by")
    files = standby_files(children_dir(settings.data_dir), name)
    activation = wait_for_activation(files, controller_pid_file(settings.data_dir), settings.workers.orphan_after_s)
    if activation.written_at > loaded_at:  # otherwise it was activated while it loaded: an ordinary start
        stopwatch = Stopwatch(activation.written_at, standby=True)
    setproctitle(f"muster worker {name} {model} {activation.device}")
    log.info("activated on %s", activation.device)
    if kind == "cuda":
        # The driver reads it at its first use, which comes later. It then shows one device, with number 0.
        os.environ["CUDA_VISIBLE_DEVICES"] = activation.device.partition(":")[2]
    return LoadedEngine(engine, activation.device, stopwatch)


def prepare(settings: Settings, name: str, loaded: LoadedEngine) -> tuple[Model, BatchSizer]:
    """Move the model to its device and measure it. Return its configuration with the engine's limits, and its sizer.

    Raises `StartFailed` and `DeviceLost`.
    """
    engine, device, stopwatch = loaded
    # torch.compile keeps its results there. Its default, a folder in /tmp, is lost with a reboot or a container.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir(settings.data_dir) / "inductor"))
    with _log_if_slow(settings, stopwatch.times.total_s), start_failures():
        engine.load()
        model = with_engine_limits(settings.models[name], engine)
        max_batch, sizer = _batch_sizer(model)
        stopwatch.lap("device_s")
        engine.warm_up()
        measure(engine, model, sizer, max_batch, cache_dir(settings.data_dir), device)
    # Libraries and model stay: looking at them again would take most of a short step's time.
    gc.collect()
    gc.freeze()
    stopwatch.lap("warm_up_s")
    return model, sizer


def _batch_sizer(model: Model) -> tuple[int, BatchSizer]:
    """Return the upper limit of a batch, and the sizer that finds the best batch below it."""
    fixed = model.max_batch_size != "auto"
    max_batch = BUCKETS[-1] if model.max_batch_size == "auto" else model.max_batch_size
    return max_batch, BatchSizer(
        max_batch, fixed=fixed, min_gain=model.batching.min_gain, max_step_s=model.batching.max_step_s
    )


def _log_if_slow(settings: Settings, elapsed_s: float) -> contextlib.AbstractContextManager[None]:
    """Log the place where a start is that takes long, of which `elapsed_s` are over."""
    return log_if_slow(_SLOW * settings.workers.start_timeout_s - elapsed_s, "not ready yet")


def _fetch(settings: Settings, model: str, device: str) -> tuple[StepEngine, Stopwatch]:
    stopwatch = Stopwatch(psutil.Process().create_time())
    with start_failures():
        if problems := checkpoint_problems(settings.models[model]):
            raise UnsupportedModel("; ".join(problems))
        with without_garbage_collection():
            engine = build(settings.models[model], device)
        stopwatch.lap("import_s")
        engine.fetch()
    stopwatch.lap("load_s")
    return engine, stopwatch


def _visible(device: str) -> str:
    """Return the device by torch's number: 0 if the launcher shows this process only one GPU."""
    pinned = len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    return "cuda:0" if device.startswith("cuda") and pinned else device
