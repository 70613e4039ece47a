"""What Locust runs: a class for each kind of user, or one user per process that sends arrivals when they are due.

`scripts/loadtest.py` starts Locust with this file and a plan. Locust's own users wait for an answer before their next
request, so that a slow server gets less load. The open loop has no such mercy: a late answer delays nothing.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Pool
from geventhttpclient.client import HTTPClient
from locust import LoadTestShape, User, events, task
from locust.exception import StopUser
from locust.user.task import LOCUST_STATE_STOPPING

from scripts.loadtest_lib.mix import USER_KINDS, LoadRequest, models_for, random_request, recorded_request
from scripts.loadtest_lib.plan import VARIABLE, LoadPlan
from scripts.loadtest_lib.records import RecordWriter
from scripts.loadtest_lib.sender import RequestSender
from scripts.loadtest_lib.shapes import poisson_arrivals, users_at

PLAN = LoadPlan.read(Path(os.environ[VARIABLE]))
PICTURE = (PLAN.folder / "source.png").read_bytes()
KEYS = PLAN.keys()
_USER_NUMBERS = itertools.count()
#: How often a user who pauses looks whether it is to end.
_STOP_POLL_S = 1.0


class ProcessRecords:
    """The records of this process, from the start of a test to its end; a test that starts again replaces them."""

    def __init__(self) -> None:
        self.writer: RecordWriter | None = None
        self._greenlet: Any = None
        self._runner: Any = None

    def start(self, environment: Any, **_: Any) -> None:
        self.stop()
        self._runner = environment.runner
        self.writer = RecordWriter(PLAN.folder / f"records-{os.getpid()}.jsonl")
        self._greenlet = gevent.spawn(self._write)

    def stop(self, **_: Any) -> None:
        if self.writer is not None and self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None
            self._flush(self.writer)
            self.writer.close()

    def _write(self) -> None:
        while True:
            gevent.sleep(1.0 - time.time() % 1.0)
            if self.writer is not None:
                self._flush(self.writer)

    def _flush(self, writer: RecordWriter) -> None:
        writer.users = self._runner.user_count
        writer.flush(int(time.time()) - 1)


RECORDS = ProcessRecords()


@events.init.add_listener  # type: ignore[untyped-decorator]
def _on_init(environment: Any, **_: Any) -> None:
    """Record in the processes that send; a master only distributes users."""
    if not type(environment.runner).__name__.startswith("Master"):
        environment.events.test_start.add_listener(RECORDS.start)
        environment.events.test_stop.add_listener(RECORDS.stop)
        environment.events.quitting.add_listener(RECORDS.stop)


class PlannedShape(LoadTestShape):  # type: ignore[misc]
    """The plan's number of users over time; the open loop has one per process."""

    def tick(self) -> tuple[int, float] | None:
        at_s, rate = self.get_run_time(), float(max(PLAN.users, PLAN.processes))
        if at_s < PLAN.shape.seconds:
            return PLAN.processes if PLAN.is_open else users_at(PLAN.shape, PLAN.users, at_s), rate
        # Requests in flight end first: at the end of a shape Locust's other processes are ended as they are.
        is_over = self.runner.user_count == 0 or at_s > PLAN.shape.seconds + PLAN.timeout_s
        return None if is_over else (0, rate)


class PlannedUser(User):  # type: ignore[misc]
    """A sender with its own API key and connections."""

    abstract = True
    connections = 1

    def on_start(self) -> None:
        assert RECORDS.writer is not None
        number = next(_USER_NUMBERS) * PLAN.processes + self.process
        self.rng = random.Random(f"{PLAN.seed}.{number}")
        key = KEYS[number % len(KEYS)] if KEYS else None
        self.sender = RequestSender(
            self._connect, RECORDS.writer, self._fire, key=key, picture=PICTURE, timeout_s=PLAN.timeout_s
        )

    def _connect(self) -> HTTPClient:
        timeouts = {"connection_timeout": PLAN.timeout_s, "network_timeout": PLAN.timeout_s}
        return HTTPClient.from_url(PLAN.url, concurrency=self.connections, **timeouts)

    @property
    def process(self) -> int:
        """The number of this process, from 0."""
        return max(getattr(self.environment.runner, "worker_index", 0), 0)

    def _fire(self, request_type: str, name: str, milliseconds: float, size: int, error: Exception | None) -> None:
        self.environment.events.request.fire(
            request_type=request_type,
            name=name,
            response_time=milliseconds,
            response_length=size,
            exception=error,
            context={},
        )


class ClosedLoopUser(PlannedUser):
    """Sends a request, waits for the answer, and pauses."""

    abstract = True
    kind = ""

    @task  # type: ignore[untyped-decorator]
    def pause_and_send(self) -> None:
        """Pause first: users who start together would stay together.

        The pause is no `wait_time`, because Locust kills a user who waits, even if its next request begins just then.
        """
        end = time.perf_counter() + self.rng.expovariate(1 / PLAN.pause_s)
        while (left := end - time.perf_counter()) > 0:
            gevent.sleep(min(left, _STOP_POLL_S))
            if self._state == LOCUST_STATE_STOPPING:
                return
        self.sender.send(random_request(PLAN, self.kind, self.rng))


class ArrivalsUser(PlannedUser):
    """Sends the arrivals of this process when they are due, whatever became of the earlier ones."""

    fixed_count = PLAN.processes if PLAN.is_open else 0
    weight = 0
    connections = PLAN.max_in_flight

    @task  # type: ignore[untyped-decorator]
    def send_arrivals(self) -> None:
        start, pool = time.perf_counter(), Pool(PLAN.max_in_flight)
        for at_s, request in self._arrivals():
            gevent.sleep(max(start + at_s - time.perf_counter(), 0.0))
            if pool.full():
                self.sender.report(request, "error", 0.0, f"not sent: {PLAN.max_in_flight} requests were in flight")
            else:
                pool.spawn(self.sender.send, request, start + at_s)
        pool.join()
        raise StopUser

    def _arrivals(self) -> Any:
        if PLAN.recorded:
            for recorded in itertools.islice(PLAN.recorded, self.process, None, PLAN.processes):
                yield recorded.at_s, recorded_request(recorded, PLAN.models, self.rng)
            return
        times = poisson_arrivals(PLAN.shape, PLAN.rate, random.Random(PLAN.seed))
        for at_s in itertools.islice(times, self.process, None, PLAN.processes):
            yield at_s, self._random_request()

    def _random_request(self) -> LoadRequest:
        kinds = [kind for kind in PLAN.weights if models_for(PLAN.models, kind)]
        [kind] = self.rng.choices(kinds, [PLAN.weights[kind] for kind in kinds])
        return random_request(PLAN, kind, self.rng)


def _closed_loop_weight(kind: str) -> float:
    is_possible = not PLAN.is_open and models_for(PLAN.models, kind)
    return PLAN.weights.get(kind, 0.0) if is_possible else 0.0


class ImageUser(ClosedLoopUser):
    """Asks for images, some of them as streams."""

    kind = "image"
    weight = _closed_loop_weight("image")


class EditUser(ClosedLoopUser):
    """Changes an image of its own."""

    kind = "edit"
    weight = _closed_loop_weight("edit")


class JobUser(ClosedLoopUser):
    """Submits jobs and asks for their results."""

    kind = "job"
    weight = _closed_loop_weight("job")


class ChatUser(ClosedLoopUser):
    """Asks a language model, mostly for streams."""

    kind = "chat"
    weight = _closed_loop_weight("chat")


assert {each.kind for each in (ImageUser, EditUser, JobUser, ChatUser)} == set(USER_KINDS)
