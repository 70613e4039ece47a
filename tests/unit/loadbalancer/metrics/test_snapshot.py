"""What is made of the snapshot, and that its labels are bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from loadbalancer.metrics.snapshot import MAX_SHAPES, SnapshotCollector
from wire.batch_sizes import BatchSizes
from wire.inputs import Shape
from wire.messages import StepCurve, WorkerCounters
from wire.snapshot import ModelStats, Snapshot, WorkerStats
from wire.text import TextCounters


def test_sizes_of_requests_make_few_series() -> None:
    sizes = [0]
    curves = [StepCurve(Shape("512x512", 512 * 512), 4)]

    def current(_: str) -> list[StepCurve]:
        return [*curves, *(StepCurve(Shape(f"{size}x8", size * 8), 1) for size in range(sizes[0], sizes[0] + 16))]

    registry = CollectorRegistry()
    registry.register(
        SnapshotCollector(lambda: Snapshot(0.0, 1.0, [ModelStats("m", 0, 0, None, 0, 0, 0)], []), current)
    )
    shapes = set()
    for _ in range(100):
        lines = [line for line in generate_latest(registry).splitlines() if line.startswith(b"muster_batch_cap{")]
        shapes.update(lines)
        assert any(b'"512x512"' in line for line in lines)
        sizes[0] += 16
    assert len(shapes) == MAX_SHAPES


def test_prompts_of_a_step_are_a_histogram_of_each_text_worker() -> None:
    sizes = BatchSizes().with_step(1).with_step(3).with_step(300)
    of_workers = [
        WorkerStats(name, "m", "cpu:0", 1, "ready", 4, 0, 0, 0.0, 0.0, 0.0, 0, WorkerCounters(), text=text)
        for name, text in (("words", TextCounters(prefill_batches=sizes)), ("images", None))
    ]
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: Snapshot(0.0, 1.0, [], of_workers), lambda _: []))
    labels, name = {"worker": "words", "model": "m", "device": "cpu:0"}, "muster_worker_prefill_batch_prompts"
    for bound, count in (("1.0", 1), ("2.0", 1), ("4.0", 2), ("256.0", 2), ("+Inf", 3)):
        assert registry.get_sample_value(f"{name}_bucket", {**labels, "le": bound}) == count
    assert registry.get_sample_value(f"{name}_count", labels) == 3
    assert registry.get_sample_value(f"{name}_sum", labels) == 304
    assert registry.get_sample_value(f"{name}_count", {**labels, "worker": "images"}) is None
