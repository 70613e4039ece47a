"""Priorities and deadlines in the simulator."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.simulator.cli import main, run
from controller.simulator.model_sim import WorkerProfile
from controller.simulator.reference.lower_bound import min_hours
from controller.simulator.results import model_results
from controller.simulator.scenarios import VARIANTS, Scenario, TimedRequest, Traffic, slice_traffic, traffic_of
from controller.simulator.trace_rows import InvalidTrace
from controller.simulator.traces import read_trace
from controller.simulator.urgency import Urgency, UrgencyQueue


def scenario(requests: list[TimedRequest], workers: int = 1) -> Scenario:
    scaling = Scaling(policy="static", min_workers=workers, max_workers=workers, slo={"percentile": 50})
    return Scenario({"m": traffic_of(requests)}, {"m": WorkerProfile("m")}, {"m": scaling}, workers, 120.0)


def starts(requests: list[TimedRequest]) -> list[float]:
    """Simulate with one worker. Returns when each request began, in order of arrival; NaN if it did not."""
    model = run("static", scenario(requests)).models["m"]
    return [at + wait for at, wait in zip(model.times, model.waits, strict=True)]


def test_priority_counts_as_age() -> None:
    urgencies = [Urgency(), Urgency(), Urgency(1), Urgency(-1), Urgency(1)]
    arrivals = [0.0, 1.0, 2.0, 3.0, 90.0]
    requests = [TimedRequest(at, 50.0, one) for at, one in zip(arrivals, urgencies, strict=True)]
    # The third overtakes the second. The last one came more than 60 s after the second, not after the fourth.
    assert starts(requests) == [0.0, 100.0, 50.0, 200.0, 150.0]


def test_request_leaves_at_its_deadline() -> None:
    requests = [TimedRequest(0.0, 30.0, Urgency(deadline_s=1.0)), TimedRequest(1.0, 5.0, Urgency(deadline_s=20.0))]
    requests += [TimedRequest(2.0, 5.0, Urgency(deadline_s=40.0)), TimedRequest(3.0, 5.0)]
    begun = starts(requests)
    assert math.isnan(begun.pop(1))
    assert begun == [0.0, 30.0, 35.0]
    (row,) = model_results("static", run("static", scenario(requests)))
    assert (row.expired, row.unserved, row.in_slo) == (1, 0, 0.25)
    assert row.utilisation == pytest.approx(40 / 120), "the work that was done"


def test_note_on_the_work_says_that_requests_may_leave(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    for deadline, note in (("", "idle time: 0.010 GPU-h"), ("10", "GPU-h, as requests with a deadline may leave")):
        file.write_text(f"arrival_s,exec_s,deadline_s\n0,36,{deadline}\n")
        main(["--trace", str(file), "--policy", "slo_work"])
        assert note in " ".join(capsys.readouterr().out.split())


REQUESTS = st.lists(
    st.builds(
        TimedRequest,
        st.floats(0, 100),
        st.sampled_from([0.1, 3.0, 30.0]),
        st.builds(Urgency, st.integers(-2, 2), st.sampled_from([0.0, 5.0, 50.0, math.inf])),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(REQUESTS, st.integers(1, 3))
def test_every_request_ends_or_expires(requests: list[TimedRequest], workers: int) -> None:
    given_scenario = scenario(requests, workers)
    result = run("static", given_scenario)
    model = result.models["m"]
    assert model.done == len(requests)
    ended = sum(not math.isnan(end) for end in model.ends)
    assert ended == model.started == len(requests) - model.expired
    assert model.advance_work(1e6) == pytest.approx(0, abs=1e-6)
    for at, wait, one in zip(model.times, model.waits, model.urgencies or [Urgency()] * len(requests), strict=True):
        assert math.isnan(wait) or wait <= one.deadline_s, at
    (row,) = model_results("static", result)
    if row.in_slo >= 0.5:
        assert min_hours(given_scenario, "m") <= row.gpu_hours + 1e-9


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_queue_serves_by_priority_then_age(steps: list[tuple[int, bool]]) -> None:
    queue = UrgencyQueue([Urgency(priority) for priority, _ in steps], 1000.0)
    waiting: list[int] = []
    for number, (priority, takes) in enumerate(steps):
        assert queue.push(number, float(number)) == math.inf
        waiting.append(number)
        if takes and priority == 3:
            queue.discard(waiting.pop(0))
        elif takes:
            expected = min(waiting, key=lambda one: (-steps[one][0], one))
            assert queue.pop() == expected
            waiting.remove(expected)
        assert queue.oldest() == min(waiting, default=None)


def test_traces_have_priorities_and_deadlines(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,exec_s,priority,deadline_s\n0,1,,\n1,1,2,30\n2,1,-1,\n")
    (traffic,) = read_trace(file).values()
    assert traffic.urgencies == [Urgency(), Urgency(2, 30.0), Urgency(-1)]
    assert slice_traffic(traffic, 1, 2).urgencies == [Urgency(2, 30.0)]
    for change, _ in VARIANTS.values():
        changed = change(traffic, 3.0, 0)
        assert len(changed.urgencies) in (0, len(changed.times))
    assert VARIANTS["reversed"][0](traffic, 3.0, 0) == Traffic([1.0, 2.0, 3.0], [1.0] * 3, traffic.urgencies[::-1])
    for values, says in (("1,1.5,", "whole number"), ("1,x,", "not a number"), ("1,1,-3", "is negative")):
        file.write_text(f"arrival_s,exec_s,priority,deadline_s\n0,{values}\n")
        with pytest.raises(InvalidTrace, match=says):
            read_trace(file)
