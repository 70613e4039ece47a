"""A simulated cluster: discrete events of requests and workers.

Each model has one first-in first-out queue. Its head goes to the ready worker with the fewest tasks. A worker runs up
to a batch of tasks; with b tasks each runs `slowdowns[b - 1]` times slower. A drained worker returns its tasks with
their progress to the head of the queue, as in the live server.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence

from controller.simulator.machines import MachineFailure, MachineStates, SimMachine
from controller.simulator.model_sim import ModelSim, PreemptedWork, SimWorker
from host.types import Exit, WorkerProcess

#: Mean progress that a task loses in a crash: half of a checkpoint interval.
_CRASH_LOSS_S = 1.0
#: The same in a failure of its machine, which is noticed after `workers.lost_after_s`. The simulation notices it at
#: once, and charges the time as lost work.
_MACHINE_LOSS_S = 10.0 + _CRASH_LOSS_S


class EventKind:
    """Kinds of events in the order in which simultaneous events are processed."""

    FINISH, READY, EXIT, CRASH = range(4)


class SimCluster:
    """The workers of all models. `next_at` is the time of the next event in seconds; `step` processes it."""

    def __init__(
        self,
        models: Mapping[str, ModelSim],
        seed: int = 0,
        *,
        failures: Sequence[MachineFailure] = (),
        machines: Sequence[SimMachine] = (),
    ) -> None:
        """`failures` are those of machines and switches, in order of time."""
        self.models = dict(models)
        self.machines = MachineStates(machines, self.models)
        self._failures = deque(failures)
        #: Failures whose machines return: a heap by time.
        self._returns: list[tuple[float, int, MachineFailure]] = []
        #: Whether machines have fallen silent since the last `take_exits`.
        self._is_interrupted = False
        #: Times until which workers cannot load on devices of failed machines.
        self._repaired_at: dict[str, float] = {}
        self.workers: dict[str, SimWorker] = {}
        self._exits: list[Exit] = []
        self._changed = False
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, int, SimWorker, int]] = []
        #: Deadlines of requests, with the order of their arrival, the model and the number.
        self._deadlines: list[tuple[float, int, ModelSim, int]] = []
        self._order = itertools.count()
        self._ids = itertools.count(1)

    @property
    def next_at(self) -> float:
        """Time of the next event; infinity if there is none."""
        events = self._events
        while events and events[0][2] == EventKind.FINISH and events[0][4] != events[0][3].epoch:
            heapq.heappop(events)
        at = events[0][0] if events else math.inf
        if self._deadlines:
            at = min(at, self._deadlines[0][0])
        if self._returns:
            at = min(at, self._returns[0][0])
        return min(at, self._failures[0].at) if self._failures else at

    @property
    def has_crashes(self) -> bool:
        """Whether a worker has crashed, or a machine failed, since the last `take_exits`."""
        return self._is_interrupted or any(ended.status != 0 for ended in self._exits)

    @property
    def has_exits(self) -> bool:
        """Whether a worker has ended, or machines have failed, since the last `take_exits`."""
        return self._is_interrupted or bool(self._exits)

    def take_exits(self) -> list[Exit]:
        """Return the workers that have ended since the last call."""
        exits, self._exits, self._is_interrupted = self._exits, [], False
        return exits

    def take_changed(self) -> bool:
        """Return whether a worker has started, become ready or ended since the last call."""
        changed, self._changed = self._changed, False
        return changed

    def step(self) -> None:
        """Process the next event."""
        if self._failures and self._failures[0].at <= self.next_at:
            self._fail_machine(self._failures.popleft())
            return
        if self._returns and self._returns[0][0] <= self.next_at:
            at, _, failure = heapq.heappop(self._returns)
            self._return_machines(failure, at)
            return
        if self._deadlines and self._deadlines[0][0] <= self.next_at:
            at, _, model, number = heapq.heappop(self._deadlines)
            model.expire(number, at)
            return
        at, _, kind, worker, _ = heapq.heappop(self._events)
        if kind == EventKind.FINISH:
            self._finish(worker, at)
        elif worker.process.id not in self.workers:
            return
        elif kind == EventKind.EXIT:
            self._remove(worker, at, 0)
        elif worker.process.drained_at is None:
            if kind == EventKind.READY and self._repaired_at.get(worker.process.device, 0.0) > at:
                self._schedule(self._repaired_at[worker.process.device], EventKind.READY, worker)
            elif kind == EventKind.READY:
                self._on_ready(worker, at)
            else:
                self._crash(worker, at)

    def _schedule(self, at: float, kind: int, worker: SimWorker) -> None:
        heapq.heappush(self._events, (at, next(self._order), kind, worker, worker.epoch))

    # ---- tasks

    def arrive(self, model: ModelSim) -> None:
        """Add the model's next request to its queue."""
        now = model.times[model.tail]
        deadline = model.push_arrival(now)
        if deadline < math.inf:
            heapq.heappush(self._deadlines, (deadline, next(self._order), model, model.tail - 1))
        self._dispatch(model, now)

    def _dispatch(self, model: ModelSim, now: float) -> None:
        by_load, batch = model.by_load, model.profile.batch
        while model.preempted or model.head < model.tail:
            load = 0
            while load < batch and not by_load[load]:
                load += 1
            if load == batch:
                return
            self._assign_head(next(iter(by_load[load].values())), now)

    def _assign_head(self, worker: SimWorker, now: float) -> None:
        """Assign the head of the queue to the worker."""
        model = worker.model
        if model.preempted:
            number, remaining_s = model.preempted.popleft()
        else:
            number = model.pop_head(now)
            remaining_s = model.work[number]
        self._change_load(worker, now, 1)
        heapq.heappush(worker.running, (worker.work_done_s + remaining_s, number))
        self._schedule_finish(worker, now)

    def _finish(self, worker: SimWorker, now: float) -> None:
        model = worker.model
        self._change_load(worker, now, -1)
        end, number = heapq.heappop(worker.running)
        worker.work_done_s = end
        model.ends[number] = now
        model.done += 1
        model.finished_s += model.work[number]
        worker.epoch += 1
        if model.preempted or model.head < model.tail:
            self._assign_head(worker, now)
        elif worker.running:
            self._schedule_finish(worker, now)

    def _change_load(self, worker: SimWorker, now: float, change: int) -> None:
        """Account for one task more or less on the worker. The caller then updates `running`."""
        model, load = worker.model, len(worker.running)
        slowdowns = model.profile.slowdowns
        model.advance_work(now)
        if load:
            worker.work_done_s += (now - worker.updated_at) / slowdowns[load - 1]
            model.work_rate -= load / slowdowns[load - 1]
        worker.updated_at = now
        new = load + change
        if new:
            model.work_rate += new / slowdowns[new - 1]
        del model.by_load[load][worker.process.id]
        model.by_load[new][worker.process.id] = worker

    def _schedule_finish(self, worker: SimWorker, now: float) -> None:
        """Schedule the finish of the worker's next task, valid until its load changes."""
        worker.epoch += 1
        remaining_s = worker.running[0][0] - worker.work_done_s
        slowdown = worker.model.profile.slowdowns[len(worker.running) - 1]
        self._schedule(now + remaining_s * slowdown, EventKind.FINISH, worker)

    # ---- workers

    def start(self, model: str, device: str, now: float, *, ready: bool = False) -> None:
        """Start a worker; with `ready` it serves immediately."""
        state = self.models[model]
        start_s = 0.0 if ready else self._random.choice(state.profile.cold_starts_s)
        self._start(state, device, now, start_s, from_standby=False)

    def start_spare(self, model: str, kind: str, now: float) -> None:
        """Start a standby process, which loads without a device."""
        state, number = self.models[model], next(self._ids)
        start_s = self._random.choice(state.profile.cold_starts_s)
        child = WorkerProcess(f"{model}-{number}", model, kind, number, now, spare=True, loaded_at=now + start_s)
        state.spares[child.id] = child

    def activate(self, name: str, model: str, device: str, now: float) -> None:
        """Let a standby process serve on the device as soon as it has loaded."""
        state = self.models[model]
        child = state.spares.pop(name, None)
        if child is not None:
            loading_s = max((child.loaded_at or now) - now, 0.0)
            self._start(state, device, now, loading_s + state.profile.standby_start_s, from_standby=True)

    def _start(self, model: ModelSim, device: str, now: float, start_s: float, *, from_standby: bool) -> None:
        number, name = next(self._ids), model.profile.model
        worker = SimWorker(
            WorkerProcess(f"{name}-{number}", name, device, number, now), model, from_standby=from_standby
        )
        self.workers[worker.process.id] = model.workers[worker.process.id] = worker
        model.change_counts(now, 1, 0)
        lifetime_s = model.profile.mean_lifetime_s
        if lifetime_s is not None:
            self._schedule(now + self._random.expovariate(1 / lifetime_s), EventKind.CRASH, worker)
        start_s += max(self._repaired_at.get(device, 0.0) - now, 0.0)
        if start_s:
            model.starts += 1
            model.standby_starts += from_standby
            self._schedule(now + start_s, EventKind.READY, worker)
        else:
            self._on_ready(worker, now)
        self._changed = True

    def _on_ready(self, worker: SimWorker, now: float) -> None:
        child = worker.process
        worker.process = WorkerProcess(child.id, child.model, child.device, child.pid, child.started_at, None, now)
        worker.updated_at = now
        worker.model.by_load[0][child.id] = worker
        worker.model.change_counts(now, -1, 1)
        self._changed = True
        self._dispatch(worker.model, now)

    def drain(self, name: str, now: float) -> None:
        """Drain the worker: it returns its tasks and exits shortly after. End a standby process of that name."""
        for model in self.models.values():
            model.spares.pop(name, None)
        worker = self.workers.get(name)
        if worker is None or worker.process.drained_at is not None:
            return
        child, model = worker.process, worker.model
        self._end_service(worker, now, 0.0)
        worker.process = WorkerProcess(
            child.id, child.model, child.device, child.pid, child.started_at, now, child.ready_at
        )
        model.drains += 1
        # A worker that is still loading has no tasks to return.
        self._schedule(now + (model.profile.drain_s if child.ready_at is not None else 0.0), EventKind.EXIT, worker)
        self._dispatch(model, now)

    def kill(self, name: str, now: float) -> None:
        """End the worker immediately."""
        worker = self.workers.get(name)
        if worker is not None:
            self._crash(worker, now)

    def _fail_machine(self, failure: MachineFailure) -> None:
        """End all workers of a machine, or cut them off; later ones load after its repair."""
        for slot in failure.slots:
            self._repaired_at[slot] = max(failure.until, self._repaired_at.get(slot, 0.0))
        self.machines.fail(failure)
        self._is_interrupted = True
        heapq.heappush(self._returns, (failure.until, next(self._order), failure))
        for worker in [one for one in self.workers.values() if one.process.device in failure.slots]:
            if not failure.is_cut:
                self._crash(worker, failure.at, _MACHINE_LOSS_S, machine_failed=True)
            elif worker.process.drained_at is None and worker.process.ready_at is not None and not worker.is_cut:
                self._end_service(worker, failure.at, _MACHINE_LOSS_S)
                worker.is_cut = True
        self._changed = True
        for model in self.models.values():
            self._dispatch(model, failure.at)

    def _return_machines(self, failure: MachineFailure, now: float) -> None:
        """Let the workers that were cut off serve again."""
        self._changed = True
        for worker in self.workers.values():
            device = worker.process.device
            if device not in failure.slots or self._repaired_at[device] > now:
                continue
            if worker.is_cut and worker.process.drained_at is None:
                worker.is_cut, worker.updated_at = False, now
                worker.model.by_load[0][worker.process.id] = worker
                worker.model.change_counts(now, 0, 1)
                self._dispatch(worker.model, now)

    def _end_service(self, worker: SimWorker, now: float, lost_s: float) -> None:
        """Return the tasks of a worker that has served, and count it no more."""
        if worker.process.ready_at is None:
            worker.model.change_counts(now, -1, 0)
        elif not worker.is_cut:
            self._preempt_tasks(worker, now, lost_s)
            worker.model.change_counts(now, 0, -1)

    def _preempt_tasks(self, worker: SimWorker, now: float, lost_s: float) -> None:
        """Return the worker's tasks to the head of the queue; each loses up to `lost_s` of its progress."""
        model, load = worker.model, len(worker.running)
        model.advance_work(now)
        if load:
            slowdown = model.profile.slowdowns[load - 1]
            worker.work_done_s += (now - worker.updated_at) / slowdown
            model.work_rate -= load / slowdown
        tasks = []
        for end, number in sorted(worker.running, key=lambda task: task[1]):
            remaining_s = max(end - worker.work_done_s, 0.0)
            repeated_s = min(remaining_s + lost_s, max(model.work[number], remaining_s))
            model.remaining_s += repeated_s - remaining_s
            model.repeated_s += repeated_s - remaining_s
            tasks.append(PreemptedWork(number, repeated_s))
        model.preempted = deque(sorted([*model.preempted, *tasks]))
        model.by_load[load].pop(worker.process.id, None)
        worker.running = []
        worker.epoch += 1

    def _crash(
        self, worker: SimWorker, now: float, lost_s: float = _CRASH_LOSS_S, *, machine_failed: bool = False
    ) -> None:
        model = worker.model
        if worker.process.drained_at is None:
            self._end_service(worker, now, lost_s)
        model.crashes += 1
        self._remove(worker, now, -9, machine_failed=machine_failed)
        self._dispatch(model, now)

    def _remove(self, worker: SimWorker, now: float, status: int, *, machine_failed: bool = False) -> None:
        del self.workers[worker.process.id]
        del worker.model.workers[worker.process.id]
        worker.model.worker_s += now - worker.process.started_at
        worker.epoch += 1
        self._exits.append(Exit(worker.process, now, status, machine_failed=machine_failed))
        self._changed = True
