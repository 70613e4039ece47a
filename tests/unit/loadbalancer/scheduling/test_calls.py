"""Calls of users' engines in the scheduler: parts, results of any number of parts, and streams in chunks."""

from __future__ import annotations

import msgspec
import pytest

from loadbalancer.scheduling.events import Effect, TasksSubmitted
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Task, TaskChunk, TaskCompleted, TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.errors import from_ended_call
from tests.support.scheduler import assignments, connect, new_scheduler, receive, updates
from wire.inputs import CallInputs, Part
from wire.messages import Bye, Chunk, EngineInfo, Failed, FailureKind, Finished, Preempted, Progress, Started

CALL = CallInputs((Part(), Part("application/octet-stream")), stream=True)
JSON = Part()


def submitted(core: Scheduler, name: str = "t") -> list[Effect]:
    task = Task(name, "m", CALL, 0.0, 1000.0, sources=(b"[1]", b"bytes"))
    return core.handle(TasksSubmitted([task]), 0.0)


def running(*, repeatable: bool = False) -> Scheduler:
    """A scheduler whose worker `w` runs the task `t`."""
    core = new_scheduler()
    connect(core, "w", slots=1)
    worker = core.registry.workers["w"]
    worker.hello = msgspec.structs.replace(worker.hello, engine_info=EngineInfo(repeatable=repeatable, streams=True))
    [(_, assignment)] = assignments(submitted(core))
    assert (assignment.inputs, assignment.frames) == (CALL, 2)
    receive(core, "w", Started("t", 1), 1.0)
    return core


@pytest.mark.parametrize("count", [0, 1, 3])
def test_result_has_any_number_of_parts(count: int) -> None:
    parts, frames = (JSON,) * count, (b"1",) * count
    got = updates(receive(running(), "w", Finished("t", 1, parts), 2.0, frames))
    assert got == [TaskCompleted("t", frames, 1.0, 1.0, parts=parts)]


@pytest.mark.parametrize("part", [Part(""), Part("text"), Part("text/html\r\nx: y"), Part(name="\0")])
def test_part_with_bad_names_is_invalid(part: Part) -> None:
    core = running()
    assert updates(receive(core, "w", Finished("t", 1, (part,)), 2.0, (b"1",))) == []
    assert core.counters["invalid_results"] == 1


def test_chunks_are_passed_on_once_in_order() -> None:
    core = running()
    got = [update for index in (0, 1, 1, 0, 2) for update in updates(receive(core, "w", chunk(index), 2.0, (b"c",)))]
    assert got == [TaskChunk("t", index, JSON, b"c") for index in (0, 1, 2)]


def test_missing_chunk_is_not_the_fault_of_its_worker() -> None:
    core = running()
    effects = receive(core, "w", chunk(1), 2.0, (b"c",))
    assert (core.counters["missing_outputs"], core.counters["invalid_results"]) == (1, 0)
    assert core.registry.workers["w"].invalid_results == 0
    assert not [update for update in updates(effects) if isinstance(update, TaskChunk)]


def test_stream_of_a_lost_worker_fails_or_goes_on() -> None:
    for repeatable in (False, True):
        core = running(repeatable=repeatable)
        receive(core, "w", chunk(0), 2.0, (b"c",))
        ended = updates(receive(core, "w", Bye("stopped", crashed=True), 3.0))
        if not repeatable:
            assert [(type(each), each.state) for each in ended if isinstance(each, TaskEnded)] == [
                (TaskEnded, TaskState.FAILED)
            ]
            continue
        assert ended == []
        connect(core, "x", slots=1)
        got = [u for index in (0, 1) for u in updates(receive(core, "x", chunk(index, attempt=2), 4.0, (b"c",)))]
        assert [each for each in got if isinstance(each, TaskChunk)] == [TaskChunk("t", 1, JSON, b"c")]


def test_call_without_chunks_starts_again() -> None:
    core = running()
    assert updates(receive(core, "w", Preempted("t", 1), 2.0)) == []
    assert core.tasks["t"].state is TaskState.ASSIGNED


def chunk(index: int, attempt: int = 1) -> Chunk:
    return Chunk("t", attempt, index, JSON)


def test_call_of_many_steps_goes_on_at_its_newest_checkpoint() -> None:
    """How many steps a call takes is known to its engine only."""
    core = running()
    for step in (10, 500, 40):
        receive(core, "w", Progress("t", 1, step, 1000, frames=1), 2.0, (b"state %d" % step,))
    receive(core, "w", Bye("stopped", crashed=True), 3.0)
    [(_, again)] = assignments(connect(core, "x", slots=1))
    assert (again.step, again.frames) == (500, 3)
    assert core.tasks["t"].checkpoint == (b"state 500",)


@pytest.mark.parametrize(
    ("kind", "status", "expected", "error_type"),
    [
        ("invalid", 0, 400, "invalid_request_error"),
        ("invalid", 404, 404, "invalid_request_error"),
        ("error", 503, 503, "server_error"),
        ("error", 0, 500, "server_error"),
        ("error", 204, 500, "server_error"),
    ],
)
def test_status_of_an_engine_is_that_of_the_response(
    kind: FailureKind, status: int, expected: int, error_type: str
) -> None:
    [ended] = updates(receive(running(), "w", Failed("t", 1, kind, "no such item", status), 2.0))
    assert isinstance(ended, TaskEnded)
    error = from_ended_call(ended, "instances[0]")
    assert (error.status, error.type) == (expected, error_type)
    assert "no such item" in error.message
