"""The step loop with an engine that fails outside its steps: only the task concerned suffers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from configs.model_sections import Batching, Sim
from configs.model_settings import Model
from tests.support.scheduler import IMAGE
from wire.codec import BalancerEnvelope, WorkerEnvelope
from wire.inputs import ImageInputs
from wire.messages import (
    PROTOCOL,
    Assign,
    Assignment,
    Cancel,
    Capacity,
    Failed,
    Finished,
    Hello,
    Preempt,
    Preempted,
    Progress,
    Reject,
    Started,
    ToBalancer,
    ToWorker,
)
from worker.batch_size import BatchSizer
from worker.engine import (
    Checkpoint,
    DeviceLost,
    EngineRequest,
    OutOfMemory,
    Row,
    TaskError,
    TaskResult,
    image_result,
)
from worker.engines.sim import SimEngine, expected_image
from worker.offer import Offer, RoundTrips
from worker.postprocessing import FinishedRow, PostProcessor
from worker.step_loop import StepLoop, WorkerRejected
from worker.transport import DrainRequested

INPUTS = ImageInputs("a seven", 64, 64, steps=4, guidance_scale=3.0, seed=1, scheduler="ddim")


class ScriptedTransport:
    """Delivers one entry of the script per tick of the loop, then asks it to drain. Records what the loop sends."""

    def __init__(self, *script: Sequence[ToWorker]) -> None:
        self._script = list(script)
        self.sent: list[WorkerEnvelope] = []
        #: The messages of every call of `send`.
        self.together: list[list[ToBalancer]] = []

    def send(self, *envelopes: WorkerEnvelope) -> None:
        self.sent += envelopes
        self.together.append([message for message, _ in envelopes])

    def receive(self, timeout_s: float) -> list[BalancerEnvelope | DrainRequested]:
        del timeout_s
        if not self._script:
            return [DrainRequested("the script is over")]
        return [BalancerEnvelope(message) for message in self._script.pop(0)]

    def results(self) -> list[ToBalancer]:
        kinds = Finished | Failed | Preempted
        return [message for message, _ in self.sent if isinstance(message, kinds)]

    def checkpoints(self) -> list[Progress]:
        return [message for message, _ in self.sent if isinstance(message, Progress) and message.frames]


class FailingEngine(SimEngine):
    """Raises an error, from the call or from the callable that it returns, for tasks with the prompt `broken`."""

    def __init__(self, error: Exception, *, deferred: bool) -> None:
        super().__init__(MODEL)
        self._error = error
        self._deferred = deferred

    def save(self, row: Row) -> Callable[[], Checkpoint]:
        return self._broken(row) or super().save(row)

    def render(self, row: Row) -> Callable[[], TaskResult]:
        return self._broken(row) or super().render(row)

    def _broken(self, row: Any) -> Callable[[], Any] | None:
        if row.inputs.prompt != "broken":
            return None
        if not self._deferred:
            raise self._error

        def fail() -> None:
            raise self._error

        return fail


class ReadyEngine(SimEngine):
    """Its results are ready when the last step is done."""

    def render(self, row: Row) -> TaskResult:  # type: ignore[override]
        return super().render(row)()


class SmallEngine(ReadyEngine):
    """Its memory takes four tasks, or one with the prompt `large`."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        self._used: dict[int, int] = {}

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        sizes = [4 if task.image.prompt == "large" else 1 for task in tasks]
        if sum(self._used.values()) + sum(sizes) > 4:
            raise OutOfMemory("no room")
        rows = super().admit(tasks)
        self._used |= {id(row): size for row, size in zip(rows, sizes, strict=True)}
        return rows

    def release(self, row: Row) -> None:
        del self._used[id(row)]


MODEL = Model(engine="sim", sim=Sim(t0_s=0, t1_s=0, load_s=0), batching=Batching(checkpoint_every=1))
ERRORS = [
    pytest.param(OutOfMemory("no room"), False, id="memory"),
    pytest.param(OutOfMemory("no room"), True, id="memory-deferred"),
    pytest.param(RuntimeError("a bug"), False, id="bug"),
    pytest.param(RuntimeError("a bug"), True, id="bug-deferred"),
]


def assign(*prompts: str) -> list[ToWorker]:
    inputs = [msgspec.structs.replace(INPUTS, prompt=prompt) for prompt in prompts]
    return [Assign([Assignment(str(number), 1, each) for number, each in enumerate(inputs)])]


def serve(engine: SimEngine, *script: Sequence[ToWorker], max_result_bytes: int = 1 << 20) -> ScriptedTransport:
    transport = ScriptedTransport(*script)
    post = PostProcessor(transport.send, 1, max_result_bytes)
    hello = Hello(PROTOCOL, "w", "m", "sim:0", 1)
    sizer = BatchSizer(8, fixed=True, min_gain=0.0, max_step_s=None)
    try:
        loop = StepLoop(engine, MODEL, hello, sizer, transport, post, drain_timeout_s=60.0)
        assert loop.run() == "the script is over"
    finally:
        post.shutdown()
    return transport


def test_large_task_is_not_overtaken_for_ever() -> None:
    """While it waits for memory, small tasks come with each step, as room ahead brings them."""

    def one(name: str, prompt: str) -> list[ToWorker]:
        return [Assign([Assignment(name, 1, msgspec.structs.replace(INPUTS, prompt=prompt))])]

    small = [one(str(number), "small") for number in range(30)]
    transport = serve(SmallEngine(), *small[:4], one("large", "large"), *small[4:], *[[]] * 30)
    finished = [message.task for message in transport.results() if isinstance(message, Finished)]
    assert finished.index("large") == 4, "after those that ran when it came"
    assert len(finished) == 31


@pytest.mark.parametrize(("error", "deferred"), ERRORS)
def test_preempted_task_goes_back_without_failed_checkpoint(error: Exception, deferred: bool) -> None:
    engine = FailingEngine(error, deferred=deferred)
    transport = serve(engine, assign("broken", "fine"), [], [Preempt(["0", "1"])])
    assert transport.results() == [Preempted("0", 1), Preempted("1", 1, step=2, frames=1)]


@pytest.mark.parametrize(("error", "deferred"), ERRORS)
def test_failed_checkpoint_or_image_fails_no_other_task(error: Exception, deferred: bool) -> None:
    transport = serve(FailingEngine(error, deferred=deferred), assign("broken", "fine"), [], [], [], [])
    outcome = {message.task: message for message in transport.results() if isinstance(message, Finished | Failed)}
    broken = outcome["0"]
    assert isinstance(broken, Failed)
    assert str(error) in broken.message
    assert outcome["1"] == Finished("1", 1, IMAGE)
    assert {message.task for message in transport.checkpoints()} == {"1"}
    [image] = [frames for message, frames in transport.sent if isinstance(message, Finished)]
    assert list(image) == [expected_image(msgspec.structs.replace(INPUTS, prompt="fine"))]


@pytest.mark.parametrize("deferred", [False, True])
def test_lost_device_ends_the_loop(deferred: bool) -> None:
    with pytest.raises(DeviceLost):
        serve(FailingEngine(DeviceLost("gone"), deferred=deferred), assign("broken"), [], [Preempt(["0"])])


def test_cancelled_task_is_freed_without_checkpoint() -> None:
    transport = serve(SimEngine(MODEL), assign("a", "b"), [Cancel(["0"])], [Preempt(["1"])])
    assert transport.results() == [Preempted("0", 1), Preempted("1", 1, step=2, frames=1)]


def test_only_waiting_tasks_go_back_if_unstarted() -> None:
    script = [*assign("a"), Preempt(["0"], unstarted=True)], assign("a"), [Preempt(["0"], unstarted=True)]
    transport = serve(SimEngine(MODEL), *script)
    assert transport.results()[0] == Preempted("0", 1)
    assert transport.results()[1:] == [Preempted("0", 1, step=2, frames=1)], "given back by the drain, not before"


def test_rejected_worker_says_hello_again_or_exits() -> None:
    transport = serve(SimEngine(MODEL), assign("a"), [Reject("unknown"), Reject("unknown")], [Preempt(["0"])])
    assert [hello.running for hello, _ in transport.sent if isinstance(hello, Hello)] == [[("0", 1)]]
    with pytest.raises(WorkerRejected, match="another protocol"):
        serve(SimEngine(MODEL), [Reject("another protocol", fatal=True)])


def test_results_that_the_balancer_rejects_are_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    transport = serve(SimEngine(MODEL), assign("a", "b"), [], [Preempt(["1"])], [], [], max_result_bytes=31)
    preempted, failed = transport.results()
    assert preempted == Preempted("1", 1), "its checkpoint has 32 bytes"
    assert isinstance(failed, Failed)
    assert failed.message.endswith("allowed are 31 (workers.max_result_bytes)")
    assert transport.checkpoints() == []
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum("its checkpoint has 32 bytes, more than workers.max_result_bytes" in each for each in warnings) == 1


def test_long_failure_texts_are_cut() -> None:
    [failed] = serve(
        FailingEngine(RuntimeError("x" * 10_000), deferred=True), assign("broken"), [], [], [], []
    ).results()
    assert isinstance(failed, Failed)
    assert len(failed.message) == 1000


def test_all_that_a_step_changes_leaves_as_one_message() -> None:
    tasks = [Assignment(str(number), 1, msgspec.structs.replace(INPUTS, steps=1)) for number in range(3)]
    transport = serve(ReadyEngine(MODEL), [Assign(tasks)])
    started = [Started(str(number), 1) for number in range(3)]
    finished = [Finished(str(number), 1, IMAGE) for number in range(3)]
    assert transport.together == [[Capacity(8), *started], finished, [Capacity(0)]]


def test_ready_result_that_is_an_error_fails_its_task_only() -> None:
    assigned = assign(MODEL.sim.nan_prompt, "fine")
    transport = serve(ReadyEngine(MODEL), assigned, [], [], [])
    [together] = [messages for messages in transport.together if any(isinstance(each, Finished) for each in messages)]
    assert [type(message) for message in together] == [Failed, Finished]


def test_capacity_comes_before_the_results_that_free_slots() -> None:
    """Otherwise the balancer would fill each freed slot by an offer that does not hold any more."""
    sent: list[list[ToBalancer]] = []
    post = PostProcessor(lambda *envelopes: sent.append([message for message, _ in envelopes]), 1, 1 << 20)
    task, result = Assignment("0", 1, INPUTS), image_result(b"image", "png")
    post.start_step((), 3, None)
    post.report((), [FinishedRow(task, lambda: result, 4)])
    post.shutdown()
    assert sent == [[Capacity(3)], [Capacity(4), Progress("0", 1, 4, 4)], [Capacity(3), Finished("0", 1, IMAGE)]]


class FakeTimer:
    """Calls the last function that it was given when told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def call_at(self, at: float, function: Callable[[], None]) -> None:
        self.calls.append((at, function))


def offering() -> tuple[PostProcessor, FakeTimer, list[list[ToBalancer]]]:
    """A post-processor that offers 4 slots, its timer, and what it sends from then on."""
    sent: list[list[ToBalancer]] = []
    timer = FakeTimer()
    post = PostProcessor(
        lambda *envelopes: sent.append([message for message, _ in envelopes]), 1, 1 << 20, call_at=timer.call_at
    )
    post.start_step((), 4, Offer())
    sent.clear()
    return post, timer, sent


def test_room_ahead_is_offered_in_time_and_ends_with_the_step() -> None:
    post, timer, sent = offering()
    at = time.monotonic()
    post.start_step((), 4, Offer(3, at))
    assert sent == []
    [(called_at, function)] = timer.calls
    assert called_at == at
    function()
    post.report((), [FinishedRow(Assignment("0", 1, INPUTS), image_result(b"image", "png"), 1)])
    assert sent == [[Capacity(4, 3)], [Capacity(4), Finished("0", 1, IMAGE)]]


@pytest.mark.parametrize("slots", [0, 4])
def test_timer_of_an_earlier_step_offers_nothing(slots: int) -> None:
    post, timer, sent = offering()
    post.start_step((), 4, Offer(3, time.monotonic()))
    post.report((), [FinishedRow(Assignment("0", 1, INPUTS), image_result(b"image", "png"), 1)])
    if not slots:
        post.offer(0)
    else:
        post.start_step((), 4, Offer(3, time.monotonic() + 60))
    sent.clear()
    for _, function in timer.calls:
        function()
    assert sent == []


def test_room_ahead_of_short_steps_is_offered_at_once_and_stays() -> None:
    post, timer, sent = offering()
    done = [FinishedRow(Assignment("0", 1, INPUTS), image_result(b"image", "png"), 1)]
    for offer in (Offer(9), Offer(9), None, Offer(2)):
        post.start_step((), 4, offer)
        post.report((), done)
    finished = [Finished("0", 1, IMAGE)]
    assert sent == [[Capacity(4, 9)], finished, finished, finished, [Capacity(4, 2)], finished]
    assert timer.calls == []


def test_worker_says_hello_without_room_ahead() -> None:
    post, _, sent = offering()
    post.start_step((), 4, Offer(9))
    post.send_hello(Hello(PROTOCOL, "w", "m", "sim:0", 1), [], 4)
    assert sent[-1] == [Capacity(4)]


@pytest.mark.parametrize(("ahead", "is_short", "later"), [(9, True, True), (9, False, False), (0, True, False)])
def test_start_of_short_step_leaves_with_its_results(ahead: int, is_short: bool, later: bool) -> None:
    sent: list[WorkerEnvelope] = []
    waiting: list[WorkerEnvelope] = []
    post = PostProcessor(
        lambda *envelopes: sent.extend(envelopes), 1, 1 << 20, send_later=lambda *envelopes: waiting.extend(envelopes)
    )
    post.start_step((), 4, Offer(ahead))
    started = WorkerEnvelope(Started("0", 1))
    post.start_step([started], 4, Offer(ahead), is_short=is_short)
    assert (started in waiting, started in sent) == (later, not later)


@pytest.mark.parametrize(("queued", "steps"), [(6, 2), (0, 3)])
def test_batch_waits_for_tasks_on_their_way_and_a_lone_one_never(queued: int, steps: int) -> None:
    """Eight tasks fill the batch; two come before its end, and six just after it, from a queue or newly submitted."""
    trips = RoundTrips()
    trips.on_assign(queued, 0.0)
    tasks = [Assignment(str(number), 1, msgspec.structs.replace(INPUTS, steps=1)) for number in range(16)]
    transport = ScriptedTransport([Assign(tasks[:8])], [Assign(tasks[8:10])], [Assign(tasks[10:])])
    model = MODEL.model_copy(update={"sim": Sim(t0_s=0.02, t1_s=0, load_s=0)})
    post = PostProcessor(transport.send, 1, 1 << 20, round_trips=trips)
    sizer = BatchSizer(8, fixed=True, min_gain=0.0, max_step_s=None)
    hello = Hello(PROTOCOL, "w", "m", "sim:0", 1)
    loop = StepLoop(ReadyEngine(model), model, hello, sizer, transport, post, 60.0, trips)
    loop.run()
    post.shutdown()
    counters = loop.heartbeat().counters
    assert (counters.rows, counters.steps) == (16, steps)
