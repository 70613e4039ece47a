"""The snapshot of the present that the controller decides by. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from loadbalancer.scheduling.estimates import backlog_work_s, long_work_s, queued_work_s
from loadbalancer.scheduling.task_store import TaskStore
from loadbalancer.scheduling.worker_pool import Worker, running_tasks
from loadbalancer.scheduling.worker_registry import WorkerRegistry
from wire.snapshot import LinkBytes, ModelStats, Snapshot, WorkerStats


def snapshot(
    store: TaskStore, links: Mapping[str, LinkBytes], *, now: float, wall_time: float, uptime_s: float
) -> Snapshot:
    """Return the snapshot. `links` are the bytes of each worker's messages."""
    return Snapshot(
        time=wall_time,
        uptime_s=uptime_s,
        models=[_model_stats(model, store, now, uptime_s) for model in store.queues],
        workers=[
            _worker_stats(worker, store.registry, links.get(worker.id, LinkBytes()), now) for worker in store.registry
        ],
    )


def _model_stats(model: str, store: TaskStore, now: float, uptime_s: float) -> ModelStats:
    queue, counters, costs = store.queues[model], store.statistics[model], store.costs[model]
    workers = store.registry.serving(model)
    oldest = queue.oldest()
    running = [task for worker in workers for task in running_tasks(worker, store.tasks)]
    held_ahead = sum(worker.held_ahead for worker in workers)
    return ModelStats(
        model=model,
        queued=queue.count + held_ahead,
        running=sum(len(worker.assigned) for worker in workers) - held_ahead,
        queued_work_s=queued_work_s(queue, store.registry.pools[model]),
        oldest_wait_s=max(now - oldest, 0.0) if oldest is not None else 0.0,
        arrival_rate=counters.arrival_rate(now),
        service_rate=counters.service_rate(now),
        batch_cap=costs.batch_cap,
        batch_slowdown=costs.batch_slowdown,
        backlog_work_s=backlog_work_s(queue, running, costs),
        long_work_s=long_work_s(running, costs, counters.drain_s),
        mean_work_s=counters.mean_work_s(costs),
        arrivals_short_window=counters.arrivals_short_window(now),
        arrivals_long_window=counters.arrivals_long_window(now),
        started_total=counters.waits.count,
        started_late_total=counters.waits.count - counters.waits.in_time,
        proxied_total=counters.proxied_total,
        proxied_in_flight=counters.proxied_in_flight,
        recent_arrivals=counters.recent_arrivals(now, uptime_s),
        unstarted_late_total=counters.unstarted_late,
    )


def _worker_stats(worker: Worker, registry: WorkerRegistry, link: LinkBytes, now: float) -> WorkerStats:
    running = min(worker.heartbeat.running, len(worker.assigned))
    return WorkerStats(
        worker=worker.id,
        model=worker.hello.model,
        device=worker.hello.device,
        pid=worker.hello.pid,
        state=registry.state(worker, now),
        slots=worker.slots,
        assigned=len(worker.assigned) - running,
        running=running,
        last_message_age_s=now - worker.last_message_at,
        step_s=worker.heartbeat.step_s,
        batch=worker.heartbeat.batch,
        memory_bytes=worker.heartbeat.memory_bytes,
        counters=worker.heartbeat.counters,
        start=worker.hello.start,
        text=worker.heartbeat.text,
        received_bytes=link.received,
        sent_bytes=link.sent,
    )
