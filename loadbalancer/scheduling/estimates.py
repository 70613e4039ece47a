"""Estimates of times and of texts' work, from what the workers have measured. Pure; estimates are no guarantees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.step_times import full_batch_step_cost
from loadbalancer.scheduling.task import Task, TaskEstimate
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.text_work import PromptSteps, TextWork
from loadbalancer.scheduling.worker_pool import WorkerPool
from wire.inputs import NO_SHAPE, Shape, TextInputs


def estimate(task: Task, queue: ModelQueue, workers: WorkerPool) -> TaskEstimate:
    """Return the task's position and the seconds to its end."""
    if task.state is not TaskState.QUEUED:
        step_s = max((worker.heartbeat.step_s for worker in workers), default=0.0)
        return TaskEstimate(task.state, 0, task.remaining_steps * step_s if step_s else None)
    position = queue.position(task)
    queue_s = drain_s(queue.steps, workers)
    if queue_s is None:
        return TaskEstimate(task.state, position, None)
    # The work before it is estimated from its position: the exact sum would take the length of the queue each time.
    before_s = queue_s * position / max(queue.count, 1)
    own_s = task.remaining_steps * max(worker.step_times.full_batch_step_s(task.shape) for worker in workers)
    return TaskEstimate(task.state, position, before_s + own_s)


def estimate_wait(task: Task, queue: ModelQueue, workers: WorkerPool, tasks: Mapping[str, Task]) -> float | None:
    """Return the seconds until a task that is not queued yet would start; None if not measured.

    That is the waiting work before it in full batches and, where no slot is free, the rest of the running task that
    finishes first.
    """
    queue_s = drain_s(queue.steps, workers) if queue.count else 0.0
    slot_s = 0.0 if any(worker.free_slots for worker in workers) else _next_free_slot_s(workers, tasks)
    if queue_s is None or slot_s is None:
        return None
    return slot_s + queue_s * queue.expected_position(task) / max(queue.count, 1)


def _next_free_slot_s(workers: WorkerPool, tasks: Mapping[str, Task]) -> float | None:
    """Return the seconds until one of the running tasks is done and its worker takes another; None if unknown."""
    remaining = (
        task.remaining_steps * step_s
        for worker in workers
        if not worker.draining
        for name in worker.assigned
        if (task := tasks.get(name)) is not None and (step_s := worker.step_times.full_batch_step_s(task.shape)) > 0
    )
    return min(remaining, default=None)


def drain_s(steps: Mapping[Shape, int], workers: WorkerPool) -> float | None:
    """Return the seconds that all workers need for these steps in full batches; None if not measured."""
    seconds = 0.0
    for shape, count in steps.items():
        rate = workers.steps_per_s(shape)
        if not rate:
            return None
        seconds += count / rate
    return seconds if seconds or workers.steps_per_s(NO_SHAPE) else None


def backlog_work_s(queue: ModelQueue, running: Sequence[Task], costs: CostModel) -> float | None:
    """Return the seconds of one worker for the rest of all waiting and running tasks; None if not measured."""
    steps = queue.steps.copy()
    for task in running:
        steps[task.shape] += task.remaining_work
    if not steps:
        return 0.0 if costs.is_measured else None
    seconds = [costs.work_s(shape, count) for shape, count in steps.items()]
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


def long_work_s(running: Iterable[Task], costs: CostModel, drain_s: float) -> float:
    """Return the part of the backlog that started tasks have left beyond `drain_s` in a full batch."""
    most_s = drain_s / costs.batch_slowdown
    started = (task for task in running if task.first_started is not None)
    rest = (costs.work_s(task.shape, task.remaining_work) or 0.0 for task in started)
    return sum(each - most_s for each in rest if each > most_s)


def queued_work_s(queue: ModelQueue, workers: WorkerPool) -> float | None:
    """Return the seconds of one worker for the waiting tasks in full batches; None if not measured."""
    work_s = 0.0
    for shape, steps in queue.steps.items():
        step_s = full_batch_step_cost((worker.step_times for worker in workers), shape)
        if not step_s:
            return None
        work_s += steps * step_s
    return work_s if work_s or workers.steps_per_s(NO_SHAPE) else None


def expect_text(task: Task, work: TextWork, costs: CostModel) -> None:
    """Estimate the work of a text that has no tokens yet; that of other tasks is known."""
    if isinstance(task.inputs, TextInputs) and not task.tokens:
        tokens = work.expected_tokens(task.owner, task.inputs.max_tokens)
        task.expect(tokens, prompt_steps(task, work.prompt_tokens(task.source_bytes), work, costs))


def prompt_steps(task: Task, tokens: int, work: TextWork, costs: CostModel) -> PromptSteps:
    """Return the steps that computing a prompt of so many tokens takes the place of."""
    full_batch_s = costs.full_batch_step_s(task.shape)
    single_s = costs.single_step_s(task.shape) or full_batch_s
    return work.prompt_steps(tokens, single_s=single_s, full_batch_s=full_batch_s)
