"""The cost model: tables of cases, and the work of all tasks adds up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.worker_pool import Worker
from wire.inputs import Shape
from wire.messages import PROTOCOL, Heartbeat, Hello, StepCurve

USUAL = Shape("64x64", 4096)
#: Four share a step at twice the time of one.
CURVE = StepCurve(USUAL, 4, [(1, 0.1), (2, 0.15), (4, 0.2)])


def worker(name: str = "w", *curves: StepCurve) -> Worker:
    made = Worker(Hello(PROTOCOL, name, "m", "sim:0", 1), 0.0, 4)
    made.on_heartbeat(Heartbeat(running=0, curves=list(curves or [CURVE])), 0.0)
    return made


def costs(*workers: Worker) -> CostModel:
    made = CostModel()
    made.update(workers or [worker()])
    return made


@pytest.mark.parametrize(
    ("curves", "cap", "slow_down", "step_s"),
    [
        ([CURVE], 4, 2.0, 0.1),
        # The cap forbids the largest batch that was measured.
        ([StepCurve(USUAL, 2, CURVE.points)], 2, 1.5, 0.1),
        # A step that gets no longer, or by chance shorter, slows nothing down.
        ([StepCurve(USUAL, 4, [(1, 0.1), (4, 0.09)])], 4, 1.0, 0.1),
        # What was not measured alone goes by the smallest batch that was.
        ([StepCurve(USUAL, 4, [(2, 0.3), (4, 0.45)])], 4, 1.5, 0.3),
        ([StepCurve(USUAL, 8, [])], 8, 1.0, None),
    ],
)
def test_costs_from_a_step_curve(curves: list[StepCurve], cap: int, slow_down: float, step_s: float | None) -> None:
    known = costs(worker("w", *curves))
    assert known.batch_cap == cap
    assert known.batch_slowdown == pytest.approx(slow_down)
    assert known.work_s(USUAL, 1) == pytest.approx(step_s)


def test_costs_stay_valid_without_workers() -> None:
    known = costs()
    known.update([])
    assert (known.batch_cap, known.batch_slowdown, known.work_s(USUAL, 1)) == (4, 2.0, 0.1)


def test_workers_are_averaged_and_unmeasured_sizes_scaled() -> None:
    slow = StepCurve(USUAL, 2, [(1, 0.3), (2, 0.6)])
    known = costs(worker("a"), worker("b", slow))
    assert known.work_s(USUAL, 1) == pytest.approx(0.2)
    assert known.work_s(Shape("128x64", 8192), 1) == pytest.approx(0.4)
    assert known.batch_cap == 4, "of the worker with the largest batch"


@pytest.mark.parametrize(
    ("others", "seconds", "work_s"),
    [
        # (tasks in the batch beside it, seconds that it was there, work that it had)
        (0, 10.0, 10.0),
        (1, 15.0, 10.0),
        (3, 20.0, 10.0),
        # Past what was measured, a step takes as long as so many full ones.
        (7, 40.0, 10.0),
    ],
)
def test_work_in_a_batch_is_divided_by_its_slowdown(others: int, seconds: float, work_s: float) -> None:
    known, host = costs(), worker()
    for number in range(others):
        known.on_start(f"other{number}", host, 0.0)
    known.on_start("t", host, 0.0)
    assert known.on_stop("t", seconds) == pytest.approx(work_s)
    assert known.on_stop("t", seconds + 1) == 0.0, "it has left"
    assert known.on_stop("never", seconds) == 0.0


def test_worker_without_a_curve_uses_the_last_slowdown() -> None:
    known, new = costs(), worker("new")
    new.on_heartbeat(Heartbeat(running=0), 0.0)
    known.on_start("a", new, 0.0)
    known.on_start("b", new, 0.0)
    assert known.on_stop("a", 8.0) == pytest.approx(6.0), "a third of the way from 1 to 2 times"


def finish(known: CostModel, shape: Shape, steps: int, work_s: float) -> None:
    """Let a task run alone until it has finished."""
    known.on_start("finished", worker("its own"), 0.0)
    assert known.on_stop("finished", work_s, (shape, steps)) == work_s


def test_finished_images_correct_the_curve_for_all_sizes() -> None:
    known = costs()
    for _ in range(3):
        finish(known, USUAL, steps=10, work_s=1.5)  # 1.0 by the curve
    assert known.work_s(USUAL, 1) == pytest.approx(0.15)
    assert known.work_s(Shape("128x64", 8192), 1) == pytest.approx(0.3), "half as much again, as the others"
    finish(known, Shape("128x64", 8192), steps=10, work_s=5.0)
    assert known.work_s(Shape("128x64", 8192), 1) == pytest.approx(0.5), "its own counts, once there is one"
    for _ in range(100):
        finish(known, USUAL, steps=10, work_s=3.0)
    assert known.work_s(USUAL, 1) == pytest.approx(0.3, rel=0.01), "what is newer counts for more"


def test_unmeasured_engine_is_known_by_finished_images() -> None:
    known = CostModel()
    assert (known.is_measured, known.work_s(USUAL, 1)) == (False, None)
    finish(known, USUAL, steps=0, work_s=1.0)
    finish(known, USUAL, steps=5, work_s=0.0)
    assert known.work_s(USUAL, 1) is None
    finish(known, USUAL, steps=5, work_s=1.0)
    assert (known.is_measured, known.work_s(USUAL, 1), known.work_s(Shape("8x8", 64), 1)) == (True, 0.2, None)


def test_number_of_remembered_sizes_is_bounded() -> None:
    known = costs()
    for number in range(1000):
        finish(known, Shape(f"{8 * number + 8}x64", 1), steps=1, work_s=1.0)
    assert known.work_s(Shape("8000x64", 1), 1) == pytest.approx(1.0)
    assert "1 shapes measured" in repr(known)
    assert known.work_s(Shape("8x64", 512), 1) != 1.0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.floats(0.0, 5.0)), max_size=60))
def test_work_of_all_tasks_adds_up_to_their_workers(moves: list[tuple[int, int, float]]) -> None:
    """Tasks come to two workers and leave in any order; by hand: n tasks for t seconds are n * t / s(n) of work."""
    known, hosts = costs(worker("a"), worker("b")), [worker("a"), worker("b")]
    slower = {0: 1.0, 1: 1.0, 2: 1.5, 3: 1.75, 4: 2.0, 5: 2.5, 6: 3.0, 7: 3.5, 8: 4.0, 9: 4.5, 10: 5.0}
    where: dict[int, int] = {}
    now, done, expected = 0.0, 0.0, 0.0
    for task, host, seconds in moves:
        now += seconds
        for number in range(2):
            there = sum(at == number for at in where.values())
            expected += there * seconds / slower[there]
        if where.pop(task, None) is None:
            known.on_start(str(task), hosts[host], now)
            where[task] = host
        else:
            done += known.on_stop(str(task), now)
    done += sum(known.on_stop(str(task), now) for task in where)
    assert done == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert repr(known).endswith(", 0 running>")


def test_worker_that_reports_no_time_for_a_step_breaks_nothing() -> None:
    known = costs(worker("w", StepCurve(USUAL, 1, [(1, 0.0)])))
    finish(known, USUAL, 4, 2.0)
    assert known.work_s(USUAL, 1) == 0.5
