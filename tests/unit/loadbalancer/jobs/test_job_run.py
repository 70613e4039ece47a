"""A job with calls in the scheduler: each call has its own values, also when only some are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.settings import Settings
from loadbalancer.jobs.job_run import JobRun
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import TaskCompleted, TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.call_results import CallResult, pack_result, unpack_result
from loadbalancer.storage.records import JobRecord, JobSpec, JobState, StoredImage
from tests.support.scheduler import notify
from wire.inputs import CallInputs, Part, TaskInputs

ONE, TWO = CallInputs((Part(),)), CallInputs((Part("image/png", "a"), Part("text/plain", "b")))
CALLS: list[TaskInputs] = [ONE, TWO, ONE]
#: As they are stored: one after the other.
SOURCES = [b"1", b"png", b"text", b"3"]


@pytest.fixture
def scheduler(tmp_path: Path) -> SchedulerService:
    models = {"echo": {"engine": "sim", "sim": {"task": "call"}}}
    settings = Settings.model_validate({"models": models, "data_dir": str(tmp_path)})
    return SchedulerService(settings, f"ipc://{tmp_path}/workers.sock")


def entered(scheduler: SchedulerService, stored: list[StoredImage]) -> JobRun:
    order = JobSpec("/v1/models/echo:predict", "echo", CALLS, 0, 1e12, "alice", 1.0)
    record = JobRecord(1, "job_1", order, JobState.RUNNING, 0.0, 0.0, None, None)
    run = JobRun(record, 0, scheduler)
    run.enter(SOURCES, stored, {}, 60.0, may_be_running=False)
    return run


async def test_each_call_has_its_own_frames(scheduler: SchedulerService) -> None:
    entered(scheduler, [])
    tasks = scheduler._scheduler.tasks
    assert [list(tasks[f"job_1-{item:03}"].sources) for item in range(3)] == [[b"1"], [b"png", b"text"], [b"3"]]


async def test_calls_that_are_stored_do_not_run_again(scheduler: SchedulerService) -> None:
    done = pack_result(CallResult((Part(),), [b"7"]))
    entered(scheduler, [StoredImage(0, done, 0.1, 0.2, flagged=False)])
    tasks = scheduler._scheduler.tasks
    assert {name: list(task.sources) for name, task in tasks.items()} == {
        "job_1-001": [b"png", b"text"],
        "job_1-002": [b"3"],
    }


async def test_results_are_stored_with_their_parts(scheduler: SchedulerService) -> None:
    run = entered(scheduler, [])
    notify(scheduler, TaskCompleted("job_1-001", [b"png", b"text"], 0.1, 0.2, parts=TWO.parts))
    [stored] = run.take_unsaved()
    found = unpack_result(stored.image)
    assert (stored.item, tuple(found.parts), list(map(bytes, found.frames))) == (1, TWO.parts, [b"png", b"text"])
    assert not run.is_finished


@pytest.mark.parametrize(
    ("update", "code", "text"),
    [
        (
            TaskCompleted("job_1-002", [b"1]"], 0.1, 0.2, parts=(Part(),)),
            "invalid_result",
            "The result cannot be sent: the engine's result is not JSON.",
        ),
        (
            TaskEnded("job_1-002", TaskState.FAILED, "invalid", "it is bad"),
            "invalid_value",
            "instances[2]: it is bad",
        ),
    ],
)
async def test_failed_call_fails_the_job(
    scheduler: SchedulerService, update: TaskCompleted | TaskEnded, code: str, text: str
) -> None:
    run = entered(scheduler, [])
    notify(scheduler, update)
    assert run.is_finished
    assert run.failure is not None
    assert (run.failure.code, run.failure.message) == (code, text)
