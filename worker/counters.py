"""Counters of the step loop, as heartbeats report them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from wire.messages import Heartbeat, WorkerCounters

#: Weight of the newest step in the moving averages.
_NEWEST_WEIGHT = 0.1


@dataclass(slots=True)
class Counters:
    """Sums since the start and moving averages. Written by the step loop, read by the client's thread."""

    steps: int = 0
    rows: int = 0
    max_batch: int = 0
    joined_midway: int = 0
    failed: int = 0
    step_s: float = 0.0
    #: Times that a batch did not fit into memory.
    out_of_memory: int = 0
    mean_step_s: float = 0.0
    mean_batch: float = 0.0
    #: Tasks in the batch.
    running: int = 0

    def on_step(self, rows: int, seconds: float) -> None:
        weight = _NEWEST_WEIGHT if self.steps else 1.0
        self.mean_step_s += weight * (seconds - self.mean_step_s)
        self.mean_batch += weight * (rows - self.mean_batch)
        self.steps += 1
        self.rows += rows
        self.max_batch = max(self.max_batch, rows)
        self.step_s += seconds

    def heartbeat(self, memory_bytes: int, finished: int, failed: int) -> Heartbeat:
        """Return the counters with `finished` and `failed` of the post-processor."""
        counters = WorkerCounters(
            steps=self.steps,
            rows=self.rows,
            max_batch=self.max_batch,
            joined_midway=self.joined_midway,
            finished=finished,
            failed=self.failed + failed,
            step_s=self.step_s,
            out_of_memory=self.out_of_memory,
        )
        return Heartbeat(self.running, self.mean_step_s, self.mean_batch, memory_bytes, counters)
