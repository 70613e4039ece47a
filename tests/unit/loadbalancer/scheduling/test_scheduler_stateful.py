"""The scheduler in random histories: no task is lost, duplicated or over-committed."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from configs.sections import Queue, Workers
from loadbalancer.scheduling.events import (
    Effect,
    NotifyListener,
    SendMessage,
    TasksCancelled,
    TasksSubmitted,
    Tick,
    WorkerLost,
)
from loadbalancer.scheduling.preemption import MAX_PREEMPTIONS
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Checkpoint, DeadlineUnreachable, QueueFull, Task, TaskCompleted, TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from tests.support.scheduler import CURVES, IMAGE, INPUTS, PNG, connect, new_scheduler, receive, task
from wire.messages import (
    Assign,
    Bye,
    Capacity,
    Failed,
    Finished,
    Heartbeat,
    Preempted,
    Progress,
    Reject,
    Started,
    ToBalancer,
)


class Histories(RuleBasedStateMachine):
    """Two workers and any number of tasks, with honest, stale and forged messages in any order."""

    tasks = Bundle("tasks")

    @initialize()
    def start(self) -> None:
        self.core = self.fresh_core()
        self.now = self.held_until = 0.0
        self.made = 0
        self.durable: set[str] = set()
        #: Durable tasks that have no room in the new queue yet.
        self.on_disk: list[Task] = []
        self.accepted: set[str] = set()
        self.ended: dict[str, int] = {}
        self.capacity: dict[str, int] = {}
        #: Attempt of each task that a worker process believes to hold.
        self.believed: dict[str, dict[str, int]] = {}
        self.pids: Counter[str] = Counter()

    def fresh_core(self) -> Scheduler:
        return new_scheduler(Queue(max_tasks=8), Workers(stuck_min_s=5.0), hold_s=2.0)

    def run(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, NotifyListener) and isinstance(effect.update, TaskCompleted | TaskEnded):
                self.ended[effect.update.task] = self.ended.get(effect.update.task, 0) + 1
            if isinstance(effect, SendMessage) and isinstance(effect.message, Assign):
                worker = self.core.registry.workers[effect.worker]
                assert len(worker.assigned) <= worker.slots + worker.ahead
                for given in effect.message.tasks:
                    self.believed.setdefault(effect.worker, {})[given.task] = given.attempt
            if isinstance(effect, SendMessage) and isinstance(effect.message, Reject) and effect.message.fatal:
                self.believed.pop(effect.worker, None)  # it exits, and another process comes
                self.pids[effect.worker] += 1

    @rule(
        target=tasks,
        priority=st.integers(0, 1),
        timeout_s=st.sampled_from([3.0, 1000.0]),
        owner=st.sampled_from(["x", "y", "z"]),
        durable=st.booleans(),
    )
    def submit(self, priority: int, timeout_s: float, owner: str, durable: bool) -> str:
        self.made += 1
        name = f"t{self.made}"
        submitted = task(name, self.now, timeout_s=timeout_s, priority=priority)
        submitted.owner, submitted.weight = owner, {"x": 1.0, "y": 2.0, "z": 0.5}[owner]
        try:
            self.run(self.core.handle(TasksSubmitted([submitted]), self.now))
        except DeadlineUnreachable:
            assert timeout_s == 3.0, "only a short deadline is rejected for it"
            return name
        except QueueFull:
            assert self.core.queues["m"].count >= 8, "only a full queue rejects"
            return name
        self.accepted.add(name)
        if durable:
            self.durable.add(name)
        return name

    @rule(saved=st.booleans())
    def restart(self, saved: bool) -> None:
        """The balancer dies: workers continue, plain requests end, and durable tasks come from disk."""
        before, self.core = self.core.tasks, self.fresh_core()
        self.accepted -= before.keys() - self.durable
        for name in sorted(before.keys() & self.durable):
            old = before[name]
            again = Task(name, "m", INPUTS, old.created, old.deadline, old.priority, old.owner, old.weight, steps=20)
            again.may_be_running = old.first_started is not None
            if saved and old.checkpoint:
                again.resume_from(Checkpoint(old.checkpoint_step, old.steps, old.checkpoint))
            self.on_disk.append(again)
        self.held_until = self.now + 2.0
        self.enter()

    def enter(self) -> None:
        waiting, self.on_disk = self.on_disk, []
        for again in waiting:
            try:
                self.run(self.core.handle(TasksSubmitted([again]), self.now))
            except QueueFull:
                self.on_disk.append(again)
            again.may_be_running = False  # only a start waits for the workers

    @rule(worker=st.sampled_from("ab"), slots=st.integers(1, 4))
    def connect(self, worker: str, slots: int) -> None:
        held = self.believed.setdefault(worker, {})
        waiting = {t for t in held if t in self.core.tasks and self.core.tasks[t].state is TaskState.QUEUED}
        claimed = {t: held[t] for t in waiting if self.core.tasks[t].attempt == 0}
        self.run(connect(self.core, worker, slots, self.now, held, self.pids[worker]))
        for name, attempt in claimed.items():
            assert (self.core.tasks[name].worker, self.core.tasks[name].attempt) == (worker, attempt)
            assert held[name] == attempt, "it is not assigned again"
        self.capacity[worker] = slots

    @rule(worker=st.sampled_from("ab"), slots=st.integers(0, 4), ahead=st.sampled_from([0, 0, 1, 5]))
    def pull(self, worker: str, slots: int, ahead: int) -> None:
        self.run(receive(self.core, worker, Capacity(slots, ahead), self.now))

    @rule(worker=st.sampled_from("ab"), name=tasks, kind=st.sampled_from(["started", "progress", "saved", "beat"]))
    def report(self, worker: str, name: str, kind: str) -> None:
        attempt = self.believed.get(worker, {}).get(name, 1)
        messages: dict[str, ToBalancer] = {
            "started": Started(name, attempt),
            "progress": Progress(name, attempt, 3, 20),
            "saved": Progress(name, attempt, 5, 20, frames=1),
            "beat": Heartbeat(running=1, step_s=0.1, batch=1.0, curves=CURVES),
        }
        self.run(receive(self.core, worker, messages[kind], self.now, (b"state",) if kind == "saved" else ()))

    @rule(
        worker=st.sampled_from("ab"),
        name=tasks,
        kind=st.sampled_from(["finished", "invalid", "failed", "returned", "moved"]),
    )
    def release(self, worker: str, name: str, kind: str) -> None:
        attempt = self.believed.get(worker, {}).pop(name, 1)
        messages: dict[str, tuple[ToBalancer, tuple[bytes, ...]]] = {
            "finished": (Finished(name, attempt, IMAGE), (PNG,)),
            "invalid": (Finished(name, attempt, IMAGE), (b"<html>",)),
            "failed": (Failed(name, attempt, "error", "broken"), ()),
            "returned": (Preempted(name, attempt), ()),
            "moved": (Preempted(name, attempt, step=3, frames=1), (b"state",)),
        }
        message, frames = messages[kind]
        self.run(receive(self.core, worker, message, self.now, frames))

    @rule(worker=st.sampled_from("ab"), name=tasks, attempt=st.integers(-1, 3))
    def repeat_or_invent(self, worker: str, name: str, attempt: int) -> None:
        if self.believed.get(worker, {}).get(name) != attempt:
            before = self.core.counters["done"]
            self.run(receive(self.core, worker, Finished(name, attempt, IMAGE), self.now, (PNG,)))
            assert self.core.counters["done"] == before

    @rule(worker=st.sampled_from("ab"), peaceful=st.booleans())
    def disconnect(self, worker: str, peaceful: bool) -> None:
        self.believed.pop(worker, None)
        self.run(
            receive(self.core, worker, Bye("told"), self.now)
            if peaceful
            else self.core.handle(WorkerLost(worker, "x"), self.now)
        )

    @rule(name=consumes(tasks))
    def cancel(self, name: str) -> None:
        self.run(self.core.handle(TasksCancelled([name], "client went away"), self.now))
        if name in [task.id for task in self.on_disk]:
            self.on_disk = [task for task in self.on_disk if task.id != name]
            self.accepted.discard(name)

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.run(self.core.handle(Tick(), self.now))
        self.enter()

    @invariant()
    def every_accepted_task_is_somewhere_or_ended_once(self) -> None:
        assert all(count == 1 for count in self.ended.values())
        assert set(self.ended).isdisjoint(self.core.tasks)
        assert self.accepted == {*self.ended, *self.core.tasks, *(task.id for task in self.on_disk)}

    @invariant()
    def slots_add_up(self) -> None:
        for worker in self.core.registry:
            live = [t for t in self.core.tasks.values() if t.worker == worker.id and t.state is not TaskState.QUEUED]
            assert {t.id: t.attempt for t in live}.items() <= worker.assigned.items()
            is_closed = worker.draining or worker.reserved_for is not None
            assert worker.free_slots == (0 if is_closed else max(worker.slots - len(worker.assigned), 0))
            assert not (worker.free_slots and worker.held_ahead)

    @invariant()
    def the_queue_holds_the_queued(self) -> None:
        queue = self.core.queues["m"]
        waiting = list(queue)
        assert {t.id for t in waiting} == {t.id for t in self.core.tasks.values() if t.state is TaskState.QUEUED}
        assert sum(queue.steps.values()) == sum(t.remaining_steps for t in waiting)
        assert len(waiting) == queue.count
        assert all(0 <= queue.position(t) < len(waiting) for t in waiting)
        assert next((t for t in waiting if not t.isolated), None) is queue.first()

    @invariant()
    def nothing_moves_without_end(self) -> None:
        assert all(t.preempt_count <= MAX_PREEMPTIONS for t in self.core.tasks.values())
        assert not any(t.preempt_requested and t.state is TaskState.QUEUED for t in self.core.tasks.values())

    @invariant()
    def no_slot_idles_while_a_task_waits(self) -> None:
        waiting = [t for t in self.core.queues["m"] if not t.isolated]
        able = [
            w
            for w in self.core.registry
            if not w.draining
            and len(w.assigned) < w.slots + w.ahead
            and w.reserved_for is None
            and self.core.registry.state(w, self.now) == "ready"
        ]
        assert not (waiting and able) or self.now < self.held_until

    @invariant()
    def a_waiting_task_stands_where_its_checkpoint_is(self) -> None:
        for waiting in self.core.queues["m"]:
            assert waiting.step == waiting.checkpoint_step
            assert bool(waiting.checkpoint) == bool(waiting.checkpoint_step)

    @invariant()
    def work_is_measured_of_what_runs(self) -> None:
        running = sum(t.state is TaskState.RUNNING for t in self.core.tasks.values())
        assert repr(self.core.costs["m"]).endswith(f", {running} running>")

    @invariant()
    def reservations_belong_to_living_tasks(self) -> None:
        assert all(w.reserved_for is None or w.reserved_for in self.core.tasks for w in self.core.registry)


Histories.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestHistories = Histories.TestCase
