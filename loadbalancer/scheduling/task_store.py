"""All task state: every transition, with its consequences for queues, slots, charges, counters and listeners. Pure.

`scheduler` interprets what has happened and calls this class. Nothing else changes the state of a task or what a worker
holds.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence

from configs.scaling import Scaling
from configs.sections import Queue
from loadbalancer.scheduling.admission_control import AdmissionControl
from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.estimates import expect_text, prompt_steps
from loadbalancer.scheduling.events import Effect, LogLine, NotifyListener, RecordTask, SendMessage
from loadbalancer.scheduling.lost_workers import LostWorkers
from loadbalancer.scheduling.model_statistics import ModelStatistics, MoveCause
from loadbalancer.scheduling.owner_usage import OwnerStatistics
from loadbalancer.scheduling.preemption import Relocation
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import DeadlineUnreachable, Task, TaskCompleted, TaskEnded, TaskStarted
from loadbalancer.scheduling.task_assigner import TaskAssigner
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.text_work import TextWork
from loadbalancer.scheduling.worker_pool import Worker, running_tasks
from loadbalancer.scheduling.worker_registry import WorkerRegistry
from wire.codec import Frame
from wire.inputs import Part, TextInputs, reports_tokens
from wire.messages import Cancel, FailureKind, Finished, Preempt
from wire.text import TokenOutput

#: No honest worker runs a task in a higher attempt; a claim of such a number is rejected.
_MAX_CLAIMED_ATTEMPT = 1_000_000
#: Deadlines of ended tasks are removed when they are the majority, and above this number.
_CLEAN_UP_ABOVE = 1024
#: Incidents of workers, which are counted from 0: alerts look for an increase.
_INCIDENTS = ("workers_lost", "workers_silent", "workers_stuck")
# Python 3.11 takes long to find a member of an enumeration by its name.
_RUNNING, _DONE = TaskState.RUNNING, TaskState.DONE


class TaskStore:
    """Tasks, queues and worker registry, kept consistent.

    `hold_s`: time for which a restarted balancer waits for workers to report what they still run.
    """

    def __init__(self, models: Mapping[str, Scaling], config: Queue, registry: WorkerRegistry, hold_s: float) -> None:
        self.registry = registry
        self.tasks: dict[str, Task] = {}
        #: A `Counter` adds four times as slowly.
        self.counters: defaultdict[str, int] = defaultdict(int, dict.fromkeys(_INCIDENTS, 0))
        self.owners = OwnerStatistics()
        self.statistics = {model: ModelStatistics(model, scaling, self.owners) for model, scaling in models.items()}
        self.costs = {model: CostModel() for model in models}
        self.text_work = {model: TextWork() for model in models}
        self.queues = {
            model: ModelQueue(config.max_tasks, priority_s=config.priority_s, step_s=costs.full_batch_step_s)
            for model, costs in self.costs.items()
        }
        self._config = config
        self._lost = LostWorkers()
        self._admission = AdmissionControl(config)
        #: Deadline and id of the tasks, as a heap. Entries of ended tasks are skipped.
        self._deadlines: list[tuple[float, str]] = []
        self._assigner = assigner = TaskAssigner(
            self.tasks,
            self.queues,
            registry,
            self.costs,
            self.statistics,
            self._expire,
            slack=config.deadline_slack,
            hold_s=hold_s,
        )
        self.assign, self.note_change = assigner.assign, assigner.note_change

    def __repr__(self) -> str:
        return f"<TaskStore {len(self.tasks)} tasks, {self.registry!r}, {self.queues!r}>"

    # ---- submission

    def submit(self, tasks: Sequence[Task], now: float, *, already_counted: bool = False) -> list[Effect]:
        """Queue the tasks of one request, all or none, and fill free slots. Raises `QueueFull`."""
        first, model = tasks[0], tasks[0].model
        if isinstance(first.inputs, TextInputs):
            for task in tasks:
                expect_text(task, self.text_work[model], self.costs[model])
        rejection = self._admission.admit(tasks, self.queues[model], self.registry.pools[model], now)
        if rejection is not None:
            unreachable = isinstance(rejection, DeadlineUnreachable)
            self.counters["deadline_unreachable" if unreachable else "refused"] += len(tasks)
            self.statistics[model].refused["deadline_unreachable" if unreachable else "queue_full"] += len(tasks)
            raise rejection
        self.counters["submitted"] += len(tasks)
        if not already_counted:
            shape, steps = first.shape, first.remaining_work
            work_s = self.costs[model].work_s(shape, steps)
            self.statistics[model].on_arrival(shape, steps, len(tasks), now, work_s)
        for task in tasks:
            self.tasks[task.id] = task
            heapq.heappush(self._deadlines, (task.deadline, task.id))
        return self._assigner.place(tasks, now)

    # ---- workers that connect again

    def reconcile(
        self, worker: Worker, previous: Worker | None, now: float
    ) -> tuple[list[str], list[str], list[Effect]]:
        """Agree with a worker that says Hello on what it runs: return the tasks that it resumes and those to cancel.

        The effects end streams that it has lost.
        """
        for name in self._lost.on_return(worker.hello):
            if (suspect := self.tasks.get(name)) is not None:
                suspect.on_worker_return()
        effects: list[Effect] = []
        before, running = dict(previous.assigned) if previous else {}, dict(worker.hello.running)
        for task_id in before:
            task = self.tasks.get(task_id)
            if task is None or task.worker != worker.id:
                continue
            task.preempt_requested = False  # the request may have been lost
            if task_id not in worker.assigned:
                effects += self.requeue(task, "reconnected", f"{worker.id} came back without it", now)
            elif task.can_miss_output:
                worker.forget(task_id)
                self.registry.cancel_reservation(task_id)
                reason = f"{worker.id} has connected again, and output may be lost"
                effects += self.requeue(task, "reconnected", reason, now)
        resumed = [
            task_id
            for task_id, attempt in running.items()
            if task_id not in before and self._resume_on(task_id, attempt, worker, now)
        ]
        # Assignments that it has not reported may still be on their way to it.
        stale = [task for task in dict.fromkeys((*running, *before)) if task not in worker.assigned]
        return resumed, stale, effects

    def _resume_on(self, task_id: str, attempt: int, worker: Worker, now: float) -> bool:
        """Let the worker continue a task of an earlier balancer process.

        Returns False where the task has ended, another worker has it, or this process has assigned it already. A text
        begins again: this process does not know its tokens so far.
        """
        task = self.tasks.get(task_id)
        if task is None or task.model != worker.hello.model or not 0 < attempt <= _MAX_CLAIMED_ATTEMPT:
            return False
        task.last_claimed_attempt = max(task.last_claimed_attempt, attempt)  # later attempts must differ from it
        if reports_tokens(task.inputs):
            self._assigner.forget_claim(task)
            return False
        if task.state is not TaskState.QUEUED or task.attempt:
            return False
        self.queues[task.model].take(task)
        task.attempt, task.worker, task.uninterrupted = attempt, worker.id, False
        task.transition(TaskState.ASSIGNED, now, f"still with {worker.id}, attempt {attempt}")
        worker.assign(task.id, attempt, now)
        self._assigner.forget_claim(task)
        self.counters["resumed"] += 1
        return True

    # ---- running tasks

    def mark_started(self, task: Task, now: float, *, ends: bool = False) -> list[Effect]:
        """Note that the worker has the task in its batch. Idempotent. `ends`: it ends now, so it has no work."""
        if task.state is _RUNNING:
            return []
        task.transition(_RUNNING, now, "started")
        task.started = now
        task.preempt_requested = False  # it was to go back only if it had not started
        if task.first_started is None:
            task.first_started = now
            self.statistics[task.model].on_start(now - task.created)
        worker = None if ends else self.registry.workers.get(task.worker or "")
        if worker is not None:
            self.costs[task.model].on_start(task.id, worker, now)
        return [NotifyListener(TaskStarted(task.id))]

    def report_progress(
        self, task: Task, step: int, steps: int, frames: Sequence[Frame], now: float, *, preview: bool
    ) -> list[Effect]:
        """Take in a progress report; a corrected number of steps is charged to the owner."""
        expected = task.steps
        update = task.on_progress(step, steps, frames, preview=preview)
        if update.preview is not None:
            self.statistics[task.model].on_preview(task, now)
        if task.steps != expected:
            self.queues[task.model].charge(task, task.steps - expected)
        return [NotifyListener(update)]

    def report_chunk(self, task: Task, index: int, part: Part, frame: Frame, *, repeatable: bool) -> list[Effect]:
        """Pass on a piece of the result, once. Raises `ValueError` if one before it is missing."""
        update = task.on_chunk(index, part, frame, repeatable=repeatable)
        return [] if update is None else [NotifyListener(update)]

    def report_tokens(self, task: Task, output: TokenOutput) -> list[Effect]:
        """Pass on generated tokens; work beyond what was expected is charged to the owner.

        Raises `ValueError` if they do not continue the text.
        """
        queue, expected = self.queues[task.model], task.steps
        if output.prompt_tokens and not task.tokens:  # its first: the prompt is known now
            self.text_work[task.model].on_prompt(task.source_bytes, output.prompt_tokens)
            work, tokens = task.remaining_work, expected - task.prompt.single
            uncached = max(output.prompt_tokens - output.cached_tokens, 0)
            task.expect(tokens, prompt_steps(task, uncached, self.text_work[task.model], self.costs[task.model]))
            queue.charge(task, task.remaining_work - work)
            expected = task.steps
        update = task.on_tokens(output)
        self.statistics[task.model].tokens_total += len(output.tokens)
        if task.steps != expected:
            queue.charge(task, task.steps - expected)
        return [NotifyListener(update)]

    def update_costs(self) -> None:
        for model, costs in self.costs.items():
            workers = self.registry.serving(model)
            self.text_work[model].update([text for each in workers if (text := each.heartbeat.text) is not None])
            factor = costs.update(workers)
            if factor is not None:
                self.queues[model].rescale(factor)

    def preempt(self, relocations: Sequence[Relocation], counted_as: str) -> list[Effect]:
        effects: list[Effect] = []
        for each in relocations:
            task = self.tasks[each.task]
            task.preempt_requested, task.preempt_count = True, task.preempt_count + 1
            text = f"task {task.id} leaves {each.worker} at step {task.step} of {task.steps}: {each.reason}"
            effects += [SendMessage(each.worker, Preempt([task.id], each.unstarted)), LogLine(text)]
        self.counters[counted_as] += len(relocations)
        return effects

    def on_preempted(self, task: Task, step: int, frames: Sequence[Frame], now: float) -> list[Effect]:
        """Take back a task from its worker, and queue it again."""
        task.on_preempted(step, frames)
        self.registry.cancel_reservation(task.id)
        return self.requeue(task, "preempted", f"preempted by {task.worker}", now)

    def requeue(self, task: Task, cause: MoveCause, reason: str, now: float) -> list[Effect]:
        """Put the task back in its place in the queue, at its checkpoint. A stream that cannot go on fails instead.

        A text that has reached its end is complete.
        """
        if task.has_text_end:
            return self.complete(task, Finished(task.id, task.attempt, ()), (), now)
        if not task.can_restart:
            failure = f"the stream was interrupted after {task.chunks} chunks: {reason}"
            task.worker = None
            return self.finish(task, TaskState.FAILED, "error", failure, now)
        task.transition(TaskState.QUEUED, now, f"{reason}; resumes at step {task.state_at} of {task.steps}")
        task.work_s += self.costs[task.model].on_stop(task.id, now)
        task.worker, task.uninterrupted, task.preempt_requested = None, False, False
        self.counters["requeued"] += 1
        redone = task.roll_back()
        self.counters["steps_redone"] += redone
        self.statistics[task.model].on_move(cause, redone)
        self.queues[task.model].requeue(task)
        self.note_change(task.model)
        return []

    def recover(self, worker: Worker, reason: str, now: float, *, blame: bool) -> list[Effect]:
        """Requeue the worker's tasks. `blame`: a running task may be the cause, and fails after `max_attempts`.

        A worker that takes tasks ahead says with the results of a short step that it has started it. If none of its
        tasks is known to run, each may be the cause. Another worker may die before its message about a start has left:
        then each is the cause only if this happens again and again.
        """
        effects: list[Effect] = []
        held = running_tasks(worker, self.tasks)
        none_runs = all(task.state is not TaskState.RUNNING for task in held)
        suspects = []
        for task in held:
            if blame and (task.state is TaskState.RUNNING or (none_runs and worker.ahead > 0)):
                task.on_crash(self._config.max_attempts)
                suspects.append(task.id)
            elif blame and none_runs:
                task.on_unstarted_crash(self._config.max_attempts)
            died = "1 worker died or hung while it" if task.crashes == 1 else f"{task.crashes} workers died while they"
            failure = f"{died} ran this task; the last: {reason}"
            effects += self._retry(task, "worker_lost", f"{worker.id} is lost: {reason}", failure, now)
        if worker.id not in self.registry.workers:  # a stuck one is still connected
            self._lost.add(worker.hello, suspects)
        return effects

    def on_invalid_result(self, task: Task, reason: str, now: float) -> list[Effect]:
        """Requeue a task whose worker has returned no valid result. It fails after `max_attempts`, as after crashes."""
        task.on_crash(self._config.max_attempts)
        failure = f"workers failed {task.crashes} times on this task; the last returned no valid result: {reason}"
        text = f"{task.worker} returned no valid result: {reason}"
        return self._retry(task, "invalid_result", text, failure, now)

    def _retry(self, task: Task, cause: MoveCause, reason: str, failure: str, now: float) -> list[Effect]:
        self.registry.cancel_reservation(task.id)
        if task.has_text_end or task.crashes < self._config.max_attempts:
            return self.requeue(task, cause, reason, now)
        task.worker = None
        return self.finish(task, TaskState.FAILED, "error", failure, now)

    # ---- ends

    def complete(self, task: Task, message: Finished, frames: Sequence[Frame], now: float) -> list[Effect]:
        """End the task with its result. Its worker may have sent that without the message of its start."""
        effects = self.mark_started(task, now, ends=True)
        started = task.first_started if task.first_started is not None else now
        task.transition(_DONE, now, "finished")
        effects.append(self._remove(task, "done", now))
        if task.tokens:
            self.text_work[task.model].on_result(task.owner, len(task.tokens))
        waited_s, ran_s, parts = started - task.created, now - started, message.parts
        update = TaskCompleted(task.id, frames, waited_s, ran_s, message.flagged, parts, message.truncated_tokens)
        return [*effects, NotifyListener(update)]

    def cancel(self, names: Sequence[str], reason: str, now: float) -> list[Effect]:
        """End these tasks; unknown and ended ones are ignored."""
        effects: list[Effect] = []
        for name in names:
            task = self.tasks.get(name)
            if task is not None:
                effects += self.finish(task, TaskState.CANCELLED, None, reason, now)
        return effects

    def expire(self, now: float) -> list[Effect]:
        """End the tasks whose deadline has passed, in any state."""
        effects: list[Effect] = []
        tasks, heap = self.tasks, self._deadlines
        if len(heap) > 2 * len(tasks) + _CLEAN_UP_ABOVE:
            heap[:] = [entry for entry in heap if entry[1] in tasks]
            heapq.heapify(heap)
        while heap and heap[0][0] <= now:
            task = tasks.get(heapq.heappop(heap)[1])
            if task is not None:
                reason = f"not done {now - task.created:.1f} s after it arrived ({task.state.value})"
                effects += self._expire(task, reason, now)
        return effects

    def _expire(self, task: Task, reason: str, now: float) -> list[Effect]:
        return self.finish(task, TaskState.EXPIRED, None, reason, now)

    def finish(
        self, task: Task, state: TaskState, kind: FailureKind | None, message: str, now: float, status: int = 0
    ) -> list[Effect]:
        """End the task without a result. A worker that holds it is told to cancel it."""
        effects: list[Effect] = []
        if task.state is TaskState.QUEUED:
            self.queues[task.model].remove(task)
        else:
            self.queues[task.model].charge(task, -task.remaining_work)
            worker = self.registry.workers.get(task.worker or "")
            if worker is not None and worker.assigned.get(task.id) == task.attempt:
                effects.append(SendMessage(worker.id, Cancel([task.id])))
        task.transition(state, now, message)
        record = self._remove(task, state.value, now)
        return [*effects, record, NotifyListener(TaskEnded(task.id, state, kind, message, status))]

    def _remove(self, task: Task, counted_as: str, now: float) -> RecordTask:
        sample = (task.shape, task.steps) if task.uninterrupted and task.state is _DONE else None
        task.work_s += self.costs[task.model].on_stop(task.id, now, sample)
        self.counters[counted_as] += 1
        self.statistics[task.model].on_end(task, now)
        if task.isolated:
            self.registry.cancel_reservation(task.id)
        if task.source_bytes:
            self._admission.remove(task)
        if task.may_be_running:
            self._assigner.forget_claim(task)
        self.note_change(task.model)
        del self.tasks[task.id]
        return RecordTask(task)
