"""The benchmark of texts: its requests, its loads and its ratios."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.bench.text.driving import TokenEvent, drive
from scripts.bench.text.interleaved import summarize as summarize_rounds
from scripts.bench.text.report import admissions, every, summarize
from scripts.bench.text.workload import TokenRequest, admission_cells, make_requests, read_lengths

_FIGURES = (
    "tokens_per_s",
    "tokens_per_cpu_s",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "itl_ms_p50",
    "itl_ms_p99",
    "latency_ms_p50",
)


_RATES = ("tokens_per_s", "tokens_per_cpu_s")


class _Counter:
    """Gives each request a token per step."""

    def __init__(self) -> None:
        self.running: dict[int, int] = {}
        self.sizes: list[int] = []

    def load(self) -> None:
        """Nothing to load."""

    def submit(self, request: TokenRequest) -> None:
        self.running[request.number] = request.tokens

    def step(self) -> Sequence[TokenEvent]:
        now = time.perf_counter()
        self.sizes.append(len(self.running))
        events = [TokenEvent(number, 1, now) for number in self.running]
        self.running = {number: left - 1 for number, left in self.running.items() if left > 1}
        return events

    def describe(self) -> str:
        return "counter"


def test_lengths_are_scaled_and_cut(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("arrival_s,input_tokens,output_tokens\n0,374,44\n4.3,9000,2000\n5,1,1\n")
    requests = make_requests(read_lengths(tmp_path / "trace.csv", 3), (0.5, 0.25), (256, 128))
    assert [(len(request.prompt), request.tokens) for request in requests] == [(187, 11), (256, 128), (4, 2)]
    assert {request.arrives_at for request in requests} == {0.0}


@pytest.mark.parametrize("users", [1, 3, None])
def test_every_request_gets_its_tokens(users: int | None) -> None:
    contender = _Counter()
    requests = make_requests(read_lengths(None, 8), (0.01, 0.02), (16, 6), None if users else 2000.0)
    figures = drive(contender, requests, users)
    assert figures["tokens"] == sum(request.tokens for request in requests)
    assert max(contender.sizes) <= (users or 8)
    assert figures["ttft_ms_p50"] <= figures["ttft_ms_p99"]


@pytest.mark.parametrize(
    ("interval", "sizes"),
    [
        (1, [2, 2, 2, 2, 1, 1, 1]),
        (2, [2, 2, 2, 2, 1, 1, 1]),
        (3, [2, 2, 1, 2, 1, 1, 1, 1]),
        (None, [2, 2, 1, 1, 2, 2, 1]),
    ],
)
def test_texts_are_admitted_every_few_steps(interval: int | None, sizes: list[int]) -> None:
    """Two places. An empty batch does not wait for its turn."""
    contender = _Counter()
    requests = [TokenRequest(number, [1], tokens) for number, tokens in enumerate((2, 4, 2, 3))]
    figures = drive(contender, requests, 2, interval)
    assert contender.sizes == sizes
    assert (figures["tokens"], figures["steps"]) == (11, len(sizes))


def test_requests_that_arrive_wait_for_an_admission() -> None:
    contender = _Counter()
    requests = make_requests(read_lengths(None, 6), (0.01, 0.02), (16, 6), 2000.0)
    assert drive(contender, requests, None, None)["tokens"] == sum(request.tokens for request in requests)


def test_sweep_over_admissions() -> None:
    assert admission_cells([1, 4], [2, None]) == [(1, 2), (4, 2), (4, None)]
    figures = {"steps": 9} | dict.fromkeys(_FIGURES, 1.0)
    rows = admissions(
        [
            {"contender": "muster", "load": "closed"} | figures,
            {"contender": "muster", "places": 4, "interval": None} | figures,
        ]
    )
    assert rows == [{"places": 4, "interval": None} | figures]
    assert [every(interval) for interval in (None, 1, 8)] == ["when empty", "at each step", "every 8 steps"]


def test_ratios_are_of_medians_of_one_load() -> None:
    results = [
        {"contender": contender, "load": load} | dict.fromkeys(_FIGURES, 1.0) | {"tokens_per_s": rate}
        for contender, load, rate in (
            ("vllm", "closed", 10.0),
            ("vllm", "closed", 30.0),
            ("muster + vllm", "closed", 19.0),
            ("muster + vllm", "open", 5.0),
            ("muster", "closed", 40.0),
        )
    ]
    rows = {(row["contender"], row["load"]): row for row in summarize(results)}
    assert rows["muster + vllm", "closed"]["tokens_per_s_of_alone"] == pytest.approx(0.95)
    assert rows["muster + vllm", "closed"]["tokens_per_s_of_muster"] == pytest.approx(0.475)
    assert rows["muster + vllm", "open"]["tokens_per_s_of_alone"] is None
    assert summarize([{"contender": "vllm", "reason": "no interpreter was given"}]) == []


def test_interleaved_ratios_are_of_the_same_round() -> None:
    """A machine that becomes slower in a round does so for all: the ratios stay."""
    rounds = [
        {
            "dtype": "float32",
            "results": {
                name: {"tokens_per_cpu_s": rate * slow, "tokens_per_s": rate}
                for name, rate in (("muster", 90.0), ("transformers cb", 45.0))
            },
        }
        for slow in (1.0, 0.4, 0.7)
    ]
    own, manager = summarize_rounds(rounds)
    assert own["muster_tokens_per_cpu_s_ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert manager["muster_tokens_per_cpu_s_ratio"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert manager["tokens_per_cpu_s"]["median"] == pytest.approx(31.5)


def test_managers_as_shipped_are_compared_with_each_other() -> None:
    rates = {"muster": 3.0, "muster prefix cache": 6.0, "transformers cb": 2.0, "transformers cb as shipped": 3.0}
    rounds = [{"dtype": "float32", "results": {name: dict.fromkeys(_RATES, rate) for name, rate in rates.items()}}]
    ratios = [row["muster_tokens_per_s_ratio"]["median"] for row in summarize_rounds(rounds)]
    assert ratios == [1.0, 0.5, 1.5, 2.0]
