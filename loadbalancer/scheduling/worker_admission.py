"""Which workers may take part: rejects those that say a wrong Hello, and those that return invalid results. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from loadbalancer.scheduling.events import Effect, LogLine, SendMessage
from loadbalancer.scheduling.worker_output import hello_error
from loadbalancer.scheduling.worker_pool import Worker
from wire.messages import PROTOCOL, Bye, Hello, Reject, ToBalancer

#: A worker that returns so many invalid results in a row is faulty: it must exit.
MAX_INVALID_RESULTS = 2
#: Rejected workers that the log names; each can come as often and under as many names as it likes.
_MAX_NAMED = 1000


class WorkerAdmission:
    """Remembers the workers that were rejected, so that the log names each once."""

    def __init__(self, models: Collection[str], heartbeat_s: float, counters: defaultdict[str, int]) -> None:
        self._models, self._heartbeat_s, self._counters = models, heartbeat_s, counters
        self._rejected: set[str] = set()
        #: Process ids of faulty workers, by name.
        self._faulty: dict[str, int] = {}
        #: Workers whose invalid results are logged.
        self._named_invalid: set[str] = set()
        #: Unknown workers that were asked for a Hello, and the time until which to wait for it.
        self._hello_requested: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<WorkerAdmission {len(self._rejected)} rejected, {len(self._faulty)} faulty>"

    def on_unknown_worker(self, name: str, message: ToBalancer, now: float) -> list[Effect]:
        """Ask for a Hello: once for all messages that were on their way, and again where the request was lost."""
        self._counters["unknown_worker"] += 1
        is_due = now >= self._hello_requested.get(name, now)
        if isinstance(message, Bye) or not is_due or len(self._hello_requested) >= _MAX_NAMED:
            return []
        self._hello_requested[name] = now + self._heartbeat_s / 2
        return [SendMessage(name, Reject("unknown worker: say Hello"))]

    def forget_requests(self, now: float) -> None:
        """Forget the requests for a Hello that have been lost."""
        self._hello_requested = {name: until for name, until in self._hello_requested.items() if until > now}

    def on_hello(self, name: str, hello: Hello) -> list[Effect]:
        """Return the effects of a rejection; none if the worker is accepted."""
        reason = self._reject_reason(name, hello)
        if reason:
            return self._reject(name, reason)
        self._hello_requested.pop(name, None)
        return []

    def _reject_reason(self, name: str, hello: Hello) -> str | None:
        if hello.protocol != PROTOCOL:
            return f"it speaks protocol {hello.protocol}, this balancer speaks {PROTOCOL}"
        if hello.worker != name:
            return f"it calls itself {hello.worker}"
        if self._faulty.get(name) == hello.pid:
            return "it has returned invalid results"
        if error := hello_error(hello):
            return error
        if hello.model not in self._models:
            return f"no model '{hello.model}' here; there are {', '.join(self._models)}"
        return None

    def _reject(self, name: str, reason: str) -> list[Effect]:
        self._counters["workers_refused"] += 1
        effects: list[Effect] = [SendMessage(name, Reject(reason, fatal=True))]
        if name not in self._rejected and len(self._rejected) < _MAX_NAMED:
            self._rejected.add(name)
            effects.append(LogLine(f"worker {name} rejected (further times are only counted): {reason}"))
        return effects

    def on_invalid_result(self, worker: Worker, task: str, error: str) -> list[Effect]:
        """Count an invalid result of the worker, and log its first one."""
        worker.on_result(valid=False)
        self._counters["invalid_results"] += 1
        if worker.id in self._named_invalid or len(self._named_invalid) >= _MAX_NAMED:
            return []
        self._named_invalid.add(worker.id)
        text = f"worker {worker.id} returned no valid result for task {task} (further ones are only counted)"
        return [LogLine(f"{text}: {error}")]

    def reject_faulty(self, worker: Worker, reason: str) -> list[Effect]:
        """Reject the worker, and its process from now on."""
        self._counters["workers_faulty"] += 1
        if len(self._faulty) >= _MAX_NAMED:
            del self._faulty[next(iter(self._faulty))]
        self._faulty[worker.id] = worker.hello.pid
        return self._reject(worker.id, reason)
