"""The scheduler with random honest workers that connect, hang, die and preempt.

Every task ends, only a death repeats work, and preemption terminates.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from configs.sections import Queue, Workers
from loadbalancer.scheduling.events import (
    Effect,
    MessageReceived,
    NotifyListener,
    SendMessage,
    TasksSubmitted,
    Tick,
    WorkerLost,
)
from loadbalancer.scheduling.preemption import MAX_PREEMPTIONS
from loadbalancer.scheduling.task import Task, TaskCompleted, TaskEnded
from tests.support.scheduler import IMAGE, PNG, new_scheduler
from wire.codec import WorkerEnvelope
from wire.inputs import ImageInputs, Shape
from wire.messages import (
    PROTOCOL,
    Assign,
    Assignment,
    Cancel,
    Capacity,
    EngineInfo,
    Finished,
    Heartbeat,
    Hello,
    Preempt,
    Preempted,
    Progress,
    Started,
    StepCurve,
    ToBalancer,
    WorkerCounters,
)

STEP_S = 0.5
CURVES = [StepCurve(Shape("64x64", 4096), 4, [(1, 0.1), (4, STEP_S)])]


class Machine:
    """A worker process that runs its tasks step by step, and checks that they resume where they were."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks: dict[str, tuple[Assignment, int]] = {}
        self.steps = 0
        self.hangs = False
        self.inbox: list[SendMessage] = []

    def read(self) -> list[tuple[ToBalancer, tuple[bytes, ...]]]:
        """Process the messages; return the answers."""
        answers: list[tuple[ToBalancer, tuple[bytes, ...]]] = []
        for send in self.inbox:
            match send.message:
                case Assign(tasks):
                    frames = iter(send.frames)
                    for given in tasks:
                        at = int(bytes(next(frames))) if given.frames else 0
                        assert at == given.step, "the checkpoint is that of the reported step"
                        self.tasks[given.task] = given, at
                        answers.append((Started(given.task, given.attempt), ()))
                case Cancel(tasks) | Preempt(tasks):
                    for name in tasks:
                        if name in self.tasks:
                            given, at = self.tasks.pop(name)
                            answers.append((Preempted(name, given.attempt, at, 1), (b"%d" % at,)))
                case _:
                    pass
        self.inbox.clear()
        return answers

    def step(self) -> list[tuple[ToBalancer, tuple[bytes, ...]]]:
        """Advance every task by a step, and send every checkpoint."""
        answers: list[tuple[ToBalancer, tuple[bytes, ...]]] = []
        self.steps += bool(self.tasks)
        for name, (given, at) in list(self.tasks.items()):
            if at + 1 == given.inputs.steps:
                del self.tasks[name]
                answers.append((Finished(name, given.attempt, IMAGE), (PNG,)))
            else:
                self.tasks[name] = given, at + 1
                progress = Progress(name, given.attempt, at + 1, given.inputs.steps, frames=1)
                answers.append((progress, (b"%d" % (at + 1),)))
        return answers


class SchedulerMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.core = new_scheduler(Queue(max_tasks=40), Workers(lost_after_s=30.0, stuck_factor=4.0, stuck_min_s=5.0))
        self.now = 0.0
        self.machines: dict[str, Machine] = {}
        self.connected = 0
        self.submitted: dict[str, Task] = {}
        self.ends: dict[str, TaskCompleted | TaskEnded] = {}
        self.join()

    def run(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, NotifyListener) and isinstance(effect.update, TaskCompleted | TaskEnded):
                assert effect.update.task not in self.ends
                self.ends[effect.update.task] = effect.update
            if isinstance(effect, SendMessage) and effect.worker in self.machines:
                self.machines[effect.worker].inbox.append(effect)

    def send(self, machine: Machine, answers: list[tuple[ToBalancer, tuple[bytes, ...]]]) -> None:
        for message, frames in answers:
            self.run(self.core.handle(MessageReceived(machine.name, WorkerEnvelope(message, frames)), self.now))

    def send_heartbeat(self, machine: Machine) -> None:
        counters = WorkerCounters(steps=machine.steps)
        self.send(machine, [(Heartbeat(len(machine.tasks), STEP_S, 4.0, 0, counters, CURVES), ())])

    @precondition(lambda self: len(self.machines) < 3)
    @rule()
    def join(self) -> None:
        self.connected += 1
        machine = self.machines[f"w{self.connected}"] = Machine(f"w{self.connected}")
        hello = Hello(PROTOCOL, machine.name, "m", "sim:0", 1, [], EngineInfo(checkpoints=True))
        self.send(machine, [(hello, ()), (Capacity(4), ())])
        self.send_heartbeat(machine)

    @rule(
        count=st.integers(1, 4),
        steps=st.integers(1, 40),
        priority=st.integers(0, 2),
        owner=st.sampled_from(["x", "y"]),
    )
    def submit(self, count: int, steps: int, priority: int, owner: str) -> None:
        image = ImageInputs("a", 64, 64, steps, guidance_scale=3.0, seed=1, scheduler="ddim")
        if len(self.core.tasks) + count > 30:
            return
        tasks = [
            Task(f"t{len(self.submitted) + n:03}", "m", image, self.now, 1e9, priority, owner, steps=steps)
            for n in range(count)
        ]
        self.submitted |= {task.id: task for task in tasks}
        self.run(self.core.handle(TasksSubmitted(tasks), self.now))

    @rule(steps=st.integers(1, 12))
    def work(self, steps: int) -> None:
        """Let time pass; each machine that does not hang makes steps."""
        for _ in range(steps):
            self.now += STEP_S
            for machine in list(self.machines.values()):
                if not machine.hangs:
                    self.send(machine, machine.read())
                    self.send(machine, machine.step())
                self.send_heartbeat(machine)
            self.run(self.core.handle(Tick(), self.now))

    @precondition(lambda self: len(self.machines) > 1)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.machines)))
        del self.machines[name]
        self.run(self.core.handle(WorkerLost(name, "killed"), self.now))

    @precondition(lambda self: len(self.machines) > 1)
    @rule(data=st.data())
    def hang_or_wake(self, data: st.DataObject) -> None:
        machine = self.machines[data.draw(st.sampled_from(sorted(self.machines)))]
        machine.hangs = not machine.hangs

    @invariant()
    def slots_are_never_overbooked(self) -> None:
        for worker in self.core.registry:
            assert len(worker.assigned) <= worker.slots

    @invariant()
    def moves_are_bounded(self) -> None:
        assert all(task.preempt_count <= MAX_PREEMPTIONS for task in self.submitted.values())

    @invariant()
    def no_place_is_empty_while_a_task_waits(self) -> None:
        ready = [
            w for w in self.core.registry if self.core.registry.state(w, self.now) == "ready" and w.reserved_for is None
        ]
        waits = any(not task.isolated for task in self.core.queues["m"])
        assert not (waits and any(worker.free_slots for worker in ready))

    def teardown(self) -> None:
        """With one good worker, every task ends."""
        if not hasattr(self, "core"):
            return
        for name in [name for name, machine in self.machines.items() if machine.hangs]:
            del self.machines[name]
            self.run(self.core.handle(WorkerLost(name, "replaced"), self.now))
        if not self.machines:
            self.join()
        self.work(1)  # a worker that has just woken up reads which tasks it lost
        for _ in range(100):
            if not self.core.tasks:
                break
            self.work(20)
        assert self.core.tasks == {}
        assert set(self.ends) == set(self.submitted)
        crashed = {name for name, task in self.submitted.items() if task.crashes >= 3}
        assert {name for name, end in self.ends.items() if isinstance(end, TaskEnded)} == crashed
        assert self.core.counters["steps_redone"] == 0, "every checkpoint was sent, so no step is repeated"
        assert all(not worker.assigned for worker in self.core.registry), "no slot leaked"


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase


@pytest.mark.parametrize("owners", [2, 5])
def test_overload_every_owner_gets_its_share(owners: int) -> None:
    """Each owner fills its room; the completed tasks differ by at most a batch."""
    service = SchedulerMachine()
    service.start()
    names = [f"o{number}" for number in range(owners)]
    image = ImageInputs("a", 64, 64, 8, guidance_scale=3.0, seed=1, scheduler="ddim")
    for turn in range(120):
        for name in names:
            room = service.core.queues["m"].room(name)
            if room:
                tasks = [
                    Task(f"{name}-{turn}-{n}", "m", image, service.now, 1e9, owner=name, steps=8) for n in range(room)
                ]
                service.submitted |= {task.id: task for task in tasks}
                service.run(service.core.handle(TasksSubmitted(tasks), service.now))
        service.work(4)
    done = [sum(service.submitted[end].owner == name for end in service.ends) for name in names]
    assert sum(done) >= 4 * 120 * 4 / 8 - 40, "no slot was idle"
    assert max(done) - min(done) <= 4
