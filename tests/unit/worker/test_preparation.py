"""Tasks that are prepared beside the steps: those that run do not wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import pytest

from configs.model_sections import Batching, Sim
from configs.model_settings import Model
from scripts.harness.processes import PATIENCE_S, wait_until
from wire.codec import BalancerEnvelope, WorkerEnvelope
from wire.inputs import ImageInputs
from wire.messages import PROTOCOL, Assign, Assignment, Cancel, Failed, Finished, Hello, Preempted, Started, ToWorker
from worker.batch_size import BatchSizer
from worker.engine import DeviceLost, EngineRequest, OutOfMemory, Row, TaskError
from worker.engines.sim import SimEngine
from worker.postprocessing import PostProcessor
from worker.step_loop import StepLoop
from worker.transport import DrainRequested

INPUTS = ImageInputs("runs", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")
MODEL = Model(engine="sim", sim=Sim(t0_s=0, t1_s=0, load_s=0), batching=Batching(checkpoint_every="never"))


class PreparingEngine(SimEngine):
    """Prepares by the first word of the prompt; not those with `runs`. `gate` holds up the preparation of `slow`."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        self.gate = threading.Event()
        #: The prompts of all calls, in order.
        self.prepared: list[str] = []
        self.discarded: list[object] = []
        self.steps = 0
        #: What was prepared for the tasks of each admission.
        self.admitted: list[list[object]] = []
        #: Called before each step.
        self.on_step: Callable[[int], None] = lambda step: None
        #: What the steps of these numbers wait for: the thread that prepares may not get a processor earlier.
        self.until: dict[int, Callable[[], bool]] = {}

    def needs_preparation(self, request: EngineRequest) -> bool:
        return not request.image.prompt.startswith("runs")

    def prepare(self, request: EngineRequest) -> object:
        prompt = request.image.prompt
        self.prepared.append(prompt)
        kind = prompt.split()[0]
        if kind == "slow":
            assert self.gate.wait(PATIENCE_S)
        errors = {"invalid": TaskError("invalid", "no"), "memory": OutOfMemory("no room"), "lost": DeviceLost("gone")}
        if kind in errors:
            raise errors[kind]
        return None if kind == "unprepared" else f"prepared {prompt}"

    def discard(self, prepared: object) -> None:
        self.discarded.append(prepared)

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        if tasks:
            self.admitted.append([task.prepared for task in tasks])
        return super().admit(tasks)

    def step(self, rows: Sequence[Row]) -> None:
        self.on_step(self.steps)
        if self.steps in self.until:
            wait_until(self.until[self.steps], f"what step {self.steps} waits for")
        time.sleep(0.001)
        self.steps += 1
        super().step(rows)


class Script:
    """Delivers messages before the steps that it names, and asks to drain when no task is left."""

    def __init__(self, engine: PreparingEngine, messages: dict[int, ToWorker], expected: int) -> None:
        self._engine = engine
        self._messages = messages
        self._expected = expected
        self.sent: list[WorkerEnvelope] = []

    def send(self, *envelopes: WorkerEnvelope) -> None:
        self.sent += envelopes

    def receive(self, timeout_s: float) -> list[BalancerEnvelope | DrainRequested]:
        if timeout_s:
            threading.Event().wait(min(timeout_s, 0.001))
        if len(self.ended) == self._expected:
            return [DrainRequested("the script is over")]
        due = [number for number in self._messages if number <= self._engine.steps]
        return [BalancerEnvelope(self._messages.pop(number)) for number in due]

    @property
    def ended(self) -> list[str]:
        return [message.task for message, _ in self.sent if isinstance(message, Finished | Failed | Preempted)]

    @property
    def started(self) -> list[str]:
        return [message.task for message, _ in self.sent if isinstance(message, Started)]


def assign(*tasks: str) -> Assign:
    """Tasks named by their prompts; those that begin with `runs` have 20 steps, the others 2."""
    steps = {task: 20 if task.startswith("runs") else 2 for task in tasks}
    inputs = [msgspec.structs.replace(INPUTS, prompt=task, steps=steps[task]) for task in tasks]
    return Assign([Assignment(each.prompt, 1, each) for each in inputs])


def serve(engine: PreparingEngine, messages: dict[int, ToWorker], expected: int, cap: int = 64) -> Script:
    script = Script(engine, messages, expected)
    post = PostProcessor(script.send, 1, 1 << 20)
    sizer = BatchSizer(cap, fixed=True, min_gain=0.0, max_step_s=None)
    try:
        loop = StepLoop(engine, MODEL, Hello(PROTOCOL, "w", "m", "sim:0", 1), sizer, script, post, drain_timeout_s=60.0)
        loop.run()
    finally:
        engine.gate.set()
        post.shutdown()
    return script


def test_a_burst_holds_up_no_step_of_those_that_run() -> None:
    engine = PreparingEngine()
    burst = [f"slow {number}" for number in range(32)]
    engine.on_step = lambda step: engine.gate.set() if step == 19 else None
    script = serve(engine, {0: assign("runs"), 3: assign(*burst)}, expected=33)
    assert script.ended[0] == "runs"
    assert script.started == ["runs", *burst], "all 20 steps of the first one came before, and the order is kept"
    assert engine.prepared == burst


def test_a_prepared_task_joins_with_what_was_prepared() -> None:
    engine = PreparingEngine()
    engine.until = {5: lambda: engine.prepared == ["a", "b"]}
    script = serve(engine, {0: assign("runs"), 3: assign("a", "b")}, expected=3)
    assert [one for admitted in engine.admitted[1:] for one in admitted] == ["prepared a", "prepared b"]
    assert script.ended == ["a", "b", "runs"]


def test_without_a_running_task_nothing_is_prepared() -> None:
    engine = PreparingEngine()
    serve(engine, {0: assign("a", "b", "slow")}, expected=3)
    assert engine.admitted == [[None, None, None]], "they are admitted together, and at once"
    assert engine.prepared == []


def test_tasks_left_when_the_batch_ends_do_not_wait_for_the_thread() -> None:
    engine = PreparingEngine()
    engine.on_step = lambda step: engine.gate.set() if step == 19 else None
    script = serve(engine, {0: assign("runs"), 1: assign("slow", "a", "b")}, expected=4)
    assert set(script.ended) == {"runs", "slow", "a", "b"}


def test_one_unprepared_task_joins_each_step() -> None:
    engine = PreparingEngine()
    tasks = [f"unprepared {number}" for number in range(5)]
    script = serve(engine, {0: assign("runs"), 3: assign(*tasks)}, expected=6)
    assert engine.admitted[1:] == [[None]] * 5
    assert script.ended[-1] == "runs"


@pytest.mark.parametrize("task", ["invalid", "memory"])
def test_errors_are_left_to_the_admission(task: str) -> None:
    engine = PreparingEngine()
    engine.until = {5: lambda: engine.prepared == [task]}
    script = serve(engine, {0: assign("runs"), 3: assign(task)}, expected=2)
    assert engine.admitted[1:] == [[None]]
    assert script.ended == [task, "runs"]


def test_a_lost_device_ends_the_loop() -> None:
    engine = PreparingEngine()
    engine.until = {5: lambda: engine.prepared == ["lost"]}
    with pytest.raises(DeviceLost, match="gone"):
        serve(engine, {0: assign("runs"), 3: assign("lost")}, expected=2)


@pytest.mark.parametrize("task", ["a", "slow"])
def test_what_was_prepared_for_a_cancelled_task_is_freed(task: str) -> None:
    engine = PreparingEngine()
    engine.on_step = lambda step: engine.gate.set() if step == 10 else None
    engine.until = {4: lambda: task in engine.prepared, 12: lambda: bool(engine.discarded)}
    messages: dict[int, ToWorker] = {0: assign("runs", "runs 2"), 3: assign(task, "b"), 5: Cancel([task])}
    script = serve(engine, messages, expected=4, cap=2)
    assert set(script.ended) == {"runs", "runs 2", task, "b"}
    assert engine.discarded == [f"prepared {task}"]


def test_a_task_that_is_assigned_again_is_prepared_again() -> None:
    engine = PreparingEngine()
    engine.until = {4: lambda: engine.prepared == ["a"], 10: lambda: engine.prepared == ["a", "again"]}
    second = Assign([Assignment("a", 2, msgspec.structs.replace(INPUTS, prompt="again", steps=2))])
    serve(engine, {0: assign("runs", "runs 2"), 3: assign("a"), 5: second}, expected=3, cap=2)
    assert engine.prepared == ["a", "again"]
    assert engine.admitted[-1] == ["prepared again"]
    assert engine.discarded == ["prepared a"]
