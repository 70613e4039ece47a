"""Start the traced programs, send one request or wait for one decision, and cut its calls out of the trace."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from scripts.harness.processes import PATIENCE_S, free_port, wait_until

_TRACED = Path(__file__).with_name("traced.py")
#: Two looks of the controller are further apart than this, and the calls of one look are closer together.
_LOOK_GAP_S = 0.12
_INTERVAL_S = 3.0
#: Requests that are traced, and the seconds after each response in which it still causes calls.
_REQUESTS = 9
_AFTER_S = 0.3
#: The client keeps its connection all the time, so that every request repeats the head of the last one.
_KEEP = httpx.Limits(keepalive_expiry=600)
_CONFIG: dict[str, Any] = {
    # Heartbeats would be counted as parts of the request.
    "workers": {"heartbeat_s": 20, "lost_after_s": 100, "orphan_after_s": 100},
    "models": {
        "sim": {
            "engine": "sim",
            "defaults": {"size": "64x64", "steps": 8},
            "sim": {"t0_s": 0.002, "t1_s": 0.0005, "load_s": 0.0},
            "scaling": {"min_workers": 1, "max_workers": 1, "interval_s": _INTERVAL_S},
        }
    },
}


class Call(NamedTuple):
    """One call in a trace."""

    at: float
    thread: int
    file: str
    function: str
    parent: int


class Step(NamedTuple):
    """A function on the way, at its first call."""

    program: str
    file: str
    function: str


@dataclass(frozen=True)
class Walk:
    """All functions on the way, in the order of their first calls within each program."""

    steps: Sequence[Step]
    file_changes: int

    @property
    def functions(self) -> int:
        return len(self.steps)

    @property
    def files(self) -> int:
        return len({step.file for step in self.steps})

    @property
    def by_program(self) -> dict[str, int]:
        programs = dict.fromkeys(step.program for step in self.steps)
        return {program: sum(step.program == program for step in self.steps) for program in programs}


def request_walk(tree: Path) -> Walk:
    """The usual way of an image request through a load balancer and a worker of the checkout `tree`."""
    with tempfile.TemporaryDirectory(prefix="muster-walk-") as name:
        folder = Path(name)
        config, port = _write_config(folder), free_port()
        url = f"http://127.0.0.1:{port}"
        with contextlib.ExitStack() as stack:
            where = ("--config", str(config), "--data-dir", str(folder / "data"))
            start = stack.enter_context
            start(_traced(tree, folder, "loadbalancer", *where, "--port", str(port)))
            _wait_for(f"{url}/healthz")
            start(_traced(tree, folder, "worker", *where, "--id", "sim-0", "--device", "sim:0"))
            _wait_for(f"{url}/readyz")
            with httpx.Client(base_url=url, timeout=PATIENCE_S, limits=_KEEP) as client:
                for _ in range(3):
                    _draw(client)
                time.sleep(0.5)  # the next tick reads the first heartbeat
                _draw(client)  # computes what is valid until the next one
                time.sleep(0.5)
                idle_since = time.monotonic()
                time.sleep(2.5)
                starts = [_draw_isolated(client) for _ in range(_REQUESTS)]
                ended = time.monotonic()
        steps: list[Step] = []
        changes = 0
        for program in ("loadbalancer", "worker"):
            calls = [call for call in _read(folder, program) if call.at < ended]
            # The worker's loop is the same with and without a request; the balancer's ticks are not.
            since = idle_since if program == "loadbalancer" else starts[0]
            own, own_changes = _usual_way(program, _without_ticks(calls, since, starts[0]), starts)
            steps += own
            changes += own_changes
        return Walk(steps, changes)


def scaling_walk(tree: Path) -> Walk:
    """The way of one look of the controller that makes a decision, in the checkout `tree`."""
    with tempfile.TemporaryDirectory(prefix="muster-walk-") as name:
        folder = Path(name)
        config, port = _write_config(folder), free_port()
        where = ("--config", str(config), "--data-dir", str(folder / "data"), "--port", str(port))
        url = f"http://127.0.0.1:{port}"
        with _traced(tree, folder, "controller", *where):
            _wait_for(f"{url}/readyz")
            with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
                for _ in range(10):
                    _draw(client)
            time.sleep(2 * _INTERVAL_S)
            steady_since = time.monotonic()
            time.sleep(3.5 * _INTERVAL_S)
            ended = time.monotonic()
        calls = _of_control_loop([call for call in _read(folder, "controller") if call.at < ended])
        calls = [call for call in calls if steady_since <= call.at]
        looks = [look for look in _looks(calls) if any("/policies/" in call.file for call in look)]
        if not looks:
            raise RuntimeError("the controller made no decision while it was traced")
        look = sorted(looks, key=lambda look: len(_steps("controller", look)))[len(looks) // 2]
        return Walk(_steps("controller", look), _file_changes(look))


def _without_ticks(calls: Sequence[Call], idle_since: float, started: float) -> list[Call]:
    """The calls of requests. A chain of calls that also starts while the server is idle is a tick."""
    roots: dict[int, str] = {}
    for index, call in enumerate(calls):
        if idle_since <= call.at:
            roots[index] = roots.get(call.parent, f"{call.file}:{call.function}")
    ticks = {root for index, root in roots.items() if calls[index].at < started}
    return [calls[index] for index, root in roots.items() if calls[index].at >= started and root not in ticks]


def _usual_way(program: str, calls: Sequence[Call], starts: Sequence[float]) -> tuple[list[Step], int]:
    """The functions of most requests, and the median of the changes of file.

    Rare ticks, such as the sweep of the database, fall into the time of one request only. In a few requests, head and
    body arrive one after the other, or messages of the worker together.
    """
    bounds = itertools.pairwise([*starts, math.inf])
    requests = [[call for call in calls if start <= call.at < end] for start, end in bounds]
    each = [_steps(program, request) for request in requests]
    counts = Counter(itertools.chain.from_iterable(each))
    usual = [step for step in dict.fromkeys(itertools.chain.from_iterable(each)) if 2 * counts[step] > len(starts)]
    return usual, statistics.median_low([_file_changes(request) for request in requests])


def _of_control_loop(calls: Sequence[Call]) -> list[Call]:
    """The calls of the loop and of the threads that it waits for, without other tasks, such as the device monitor."""
    loop_thread = next(call.thread for call in calls if call.function == "ControlLoop.run")
    is_own: list[bool] = []
    for call in calls:
        is_root = call.function == "ControlLoop.run" or call.thread != loop_thread
        is_own.append(is_own[call.parent] if call.parent >= 0 else is_root)
    return list(itertools.compress(calls, is_own))


def _looks(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    first = 0
    for index in range(1, len(calls)):
        if calls[index].at - calls[index - 1].at > _LOOK_GAP_S:
            yield calls[first:index]
            first = index


def _steps(program: str, calls: Sequence[Call]) -> list[Step]:
    return list(dict.fromkeys(Step(program, call.file, call.function) for call in calls))


def _file_changes(calls: Sequence[Call]) -> int:
    """How often the next call of a thread is in another file."""
    threads: dict[int, list[str]] = {}
    for call in calls:
        threads.setdefault(call.thread, []).append(call.file)
    return sum(a != b for files in threads.values() for a, b in itertools.pairwise(files))


def _draw_isolated(client: httpx.Client) -> float:
    """Send one request, with nothing before and after it. Returns when it was sent."""
    started = time.monotonic()
    _draw(client)
    time.sleep(_AFTER_S)
    return started


def _draw(client: httpx.Client) -> None:
    client.post("/v1/images/generations", json={"model": "sim", "prompt": "a seven"}).raise_for_status()


def _write_config(folder: Path) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(_CONFIG))
    return file


@contextlib.contextmanager
def _traced(tree: Path, folder: Path, program: str, *options: str) -> Iterator[None]:
    command = [sys.executable, str(_TRACED), str(folder / f"{program}.json"), str(tree), program, *options]
    with (folder / f"{program}.log").open("wb") as log:
        child = subprocess.Popen(command, cwd=tree, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield
    except BaseException:
        print((folder / f"{program}.log").read_text()[-4000:], file=sys.stderr)
        raise
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(PATIENCE_S)


def _read(folder: Path, program: str) -> list[Call]:
    return [Call(*call) for call in json.loads((folder / f"{program}.json").read_text())]


def _wait_for(url: str) -> None:
    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(url).is_success
        return False

    wait_until(answers, f"an answer of {url}")
