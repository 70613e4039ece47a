"""Labels of the snapshot's metrics are bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from loadbalancer.metrics.snapshot import MAX_SHAPES, SnapshotCollector
from wire.inputs import Shape
from wire.messages import StepCurve
from wire.snapshot import ModelStats, Snapshot


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
