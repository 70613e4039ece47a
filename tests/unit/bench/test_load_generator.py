"""The benchmark's load generator on the real step loop with the simulated engine."""

import dataclasses
from typing import Any

import pytest

from configs.model_sections import Defaults, Sim
from configs.model_settings import Model
from scripts.bench.serving.load_generator import Load, LoadResult, run
from scripts.bench.serving.report import condense
from scripts.bench.serving.servers import ServerUsage, StepBatching
from scripts.bench.serving.workloads import BenchRequest, Steps
from wire.inputs import ImageInputs
from worker.batch_size import BatchSizer
from worker.engines.sim import SimEngine

BASE = ImageInputs("a seven", 64, 64, 5, 3.0, 0, "ddim")


@pytest.fixture
def server() -> StepBatching:
    sim = Sim(t0_s=0.002, t1_s=0.001, load_s=0.0)
    model = Model(engine="sim", defaults=Defaults(size="64x64"), sim=sim)
    engine = SimEngine(model)
    engine.load()
    return StepBatching(engine, model, BatchSizer(4, fixed=True, min_gain=0.0, max_step_s=None), threads=1)


@pytest.mark.parametrize("how", [{"users": 6}, {"rate": 40.0}])
def test_every_request_gets_one_answer(server: StepBatching, how: dict[str, Any]) -> None:
    load = Load("some", BASE, Steps(3, 9), seconds=0.6, lead_s=0.2, trace="a", **how)
    result = run(server, load, timeout_s=60.0)
    assert result.unanswered == result.errors == 0
    assert min(result.latencies) > 3 * 0.002  # no request takes fewer than three steps
    assert 1 <= result.mean_batch <= 4


def test_failed_request_counted_as_error_and_unanswered(server: StepBatching) -> None:
    failing = dataclasses.replace(_load(users=1), base=ImageInputs("sim:fail", 64, 64, 5, 3.0, 0, "ddim"))
    result = run(server, failing)
    assert result.errors >= result.unanswered == len(result.latencies)
    assert result.errors > 0
    assert result.images_per_s == 0


class SilentServer:
    """A server that never answers."""

    name = "deaf"

    def start(self, done: object) -> None:
        pass

    def submit(self, ask: BenchRequest) -> None:
        pass

    def stop(self) -> ServerUsage:
        return ServerUsage()


def test_unanswered_request_counts_full_wait() -> None:
    result = run(SilentServer(), _load(rate=50.0), timeout_s=0.3)
    assert result.unanswered == len(result.latencies) > 0
    assert min(result.latencies) >= 0.3  # the full timeout after the last arrival


def _load(**how: Any) -> Load:
    return Load("some", BASE, Steps(5, 5), seconds=0.2, lead_s=0.1, trace="a", **how)


def test_ratios_are_taken_within_a_round() -> None:
    ours = [_load_result("step batching", 0.1, 10), _load_result("step batching", 0.2, 5)]
    other = [_load_result("whole batches", 0.2, 5), _load_result("whole batches", 0.8, 2.5)]
    rows = condense({"some": {"step batching": ours, "whole batches": other, "one at a time": []}})
    assert [row["overloaded"] for row in rows] == [False, False, True]
    row = rows[1]
    assert row["ratio_images_per_s"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert row["ratio_p50_ms"]["min"] == pytest.approx(0.25)
    assert row["ratio_p50_ms"]["max"] == pytest.approx(0.5)
    assert row["p99_ms"]["max"] == pytest.approx(800)


def _load_result(server: str, latency: float, images_per_s: float) -> LoadResult:
    return LoadResult(_load(users=1), server, latencies=[latency] * 3, images_per_s=images_per_s)
