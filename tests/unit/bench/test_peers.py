"""Peers: wrk's output, outcomes, ratios, the table, the command line, the user model."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.settings import Settings
from scripts.bench.serving import peers
from scripts.bench.serving.peers_lib import loads, report, wrk
from scripts.bench.serving.peers_lib.deployment import Deployment, Measurement, Result
from scripts.bench.serving.peers_lib.http_client import raw_post
from scripts.bench.serving.peers_lib.loads import LOST, TIMED_OUT, Outcome
from scripts.bench.serving.peers_lib.scenarios import SCENARIOS, Scenario, takes_part
from scripts.bench.serving.peers_lib.servers import MUSTER, PEERS, YARDSTICK, Peer, muster_config
from scripts.harness import environments

NAN = float("nan")
SUMMARY = {
    "requests": 1010,
    "bytes": 5_000_000,
    "duration_us": 2_000_000,
    "p50_us": 4000,
    "p99_us": 9500,
    "max_us": 20000,
    "connect": 1,
    "read": 2,
    "write": 3,
    "timeout": 4,
    "status": 10,
}


def output_of_wrk(**changes: int) -> str:
    return f"Running 2s test\n  1010 requests in 2.00s\n\nSUMMARY {json.dumps(SUMMARY | changes)}\n"


def result(scenario: str, server: str, number: int, per_s: float) -> Result:
    return Result(scenario, server, number, Measurement(per_s, 4.0, 9.0, answered=100, client="wrk"))


def by_server(results: Sequence[Result]) -> dict[str, report.Row]:
    return {row.server: row for row in report.rows(results)}


def test_wrk_summary_is_parsed() -> None:
    assert wrk.parse(output_of_wrk()) == Measurement(
        per_s=500.0,
        p50_ms=4.0,
        p99_ms=9.5,
        answered=1000,
        errors=20,
        client="wrk",
    )


@pytest.mark.parametrize("output", ["", "Running 2s test\n  unable to connect\n"])
def test_wrk_without_summary_raises(output: str) -> None:
    with pytest.raises(RuntimeError, match="no summary"):
        wrk.parse(output)


def test_request_has_length_and_headers() -> None:
    raw = raw_post("http://127.0.0.1:80/models/bench:predict", b"{}", {"Accept": "image/png"})
    assert raw == (
        b"POST /models/bench:predict HTTP/1.1\r\nHost: 127.0.0.1:80\r\nContent-Length: 2\r\nAccept: image/png\r\n\r\n{}"
    )


def test_outcomes_are_counted_by_kind() -> None:
    good = [Outcome(0.1 * n, 0.1 * n + 0.05, 200) for n in range(100)]
    bad = [Outcome(5.0, 5.1, status) for status in (429, 503, 408, 500, 500, LOST, TIMED_OUT)]
    measurement = loads.measured([*good, *bad], 0.0, 10.0)
    assert measurement.per_s == pytest.approx(10.0)
    assert (measurement.answered, measurement.refused, measurement.errors) == (100, 2, 5)
    assert measurement.p50_ms == pytest.approx(50.0)
    assert measurement.details == {"status 408": 1, "status 500": 2, "connection lost": 1, "no answer": 1}


def test_outcomes_outside_the_window_do_not_count() -> None:
    outcomes = [Outcome(at, at + 0.5, 200) for at in (0.0, 1.2, 1.4, 1.8, 5.0)]
    assert loads.measured(outcomes, 1.0, 2.0).answered == 3


def test_rate_is_a_slope_without_the_edges() -> None:
    """Batches of 12 every 0.11 s: a count over 1 s would be off by up to a batch."""
    outcomes = [Outcome(0.11 * batch, 0.11 * (batch + 1), 200) for batch in range(40) for _ in range(12)]
    assert loads.measured(outcomes, 1.0, 2.0).per_s == pytest.approx(12 / 0.11, rel=0.02)


def test_no_answer_is_no_rate() -> None:
    measurement = loads.measured([Outcome(0.0, 1.0, 500)], 0.0, 1.0)
    assert (measurement.per_s, measurement.answered, measurement.errors) == (0.0, 0, 1)
    assert math.isnan(measurement.p99_ms)


@pytest.mark.parametrize(
    ("values", "median"), [([], NAN), ([1.0], 1.0), ([3.0, 1.0, NAN, 2.0], 2.0), ([float("inf"), 5.0], 5.0)]
)
def test_median_ignores_what_is_not_finite(values: list[float], median: float) -> None:
    assert report.median(values) == pytest.approx(median, nan_ok=True)


def test_ratios_are_within_rounds() -> None:
    """The second round ran on a machine half as fast: ratios stay."""
    found = by_server(
        [
            result("noop", server, number, per_s * speed)
            for number, speed in enumerate([1.0, 0.5])
            for server, per_s in ((YARDSTICK, 20_000.0), (MUSTER, 6000.0), ("MOSEC", 8000.0))
        ]
    )
    assert [found[name].of_yardstick for name in (YARDSTICK, MUSTER, "MOSEC")] == pytest.approx([1.0, 0.3, 0.4])
    assert [found[name].muster_ratio for name in (YARDSTICK, MUSTER, "MOSEC")] == pytest.approx([0.3, 1.0, 0.75])
    assert (found["MOSEC"].per_s, found["MOSEC"].min_per_s, found["MOSEC"].max_per_s) == (6000.0, 4000.0, 8000.0)


def test_yardstick_of_accelerators_is_the_ideal() -> None:
    ideal = Deployment("accelerator", 4, 12).ideal_per_s
    assert ideal == pytest.approx(436.36, abs=0.01)
    assert by_server([result("accelerator-4", MUSTER, 0, ideal / 2)])[MUSTER].of_yardstick == pytest.approx(0.5)


def test_ratio_needs_both_sides() -> None:
    row = by_server([result("noop", "MOSEC", 0, 100.0), result("noop", MUSTER, 1, 100.0)])["MOSEC"]
    assert math.isnan(row.muster_ratio)
    assert math.isnan(row.of_yardstick)


def test_server_that_cannot_run_keeps_its_reason() -> None:
    results = [Result("noop", "LitServe", number, reason="not installed: no wheel") for number in range(2)]
    row = by_server(results)["LitServe"]
    assert (row.rounds, row.reason) == (0, "not installed: no wheel")
    assert report.table([row]).row_count == 1


def test_details_missing_in_a_round_are_skipped() -> None:
    results = [
        Result("kill", MUSTER, 0, Measurement(10.0, details={"status 500": 4.0, "workers": 2.0})),
        Result("kill", MUSTER, 1, Measurement(10.0, details={"workers": 4.0})),
    ]
    assert by_server(results)[MUSTER].details == {"status 500": 4.0, "workers": 3.0}


@pytest.mark.parametrize(
    ("value", "text"), [(NAN, ""), (float("inf"), "never"), (12345.6, "12,346"), (12.34, "12.3"), (0.456, "0.46")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert report.number(value) == text


def test_json_holds_no_nan() -> None:
    text = json.dumps(report.plain({"rows": report.rows([Result("kill", MUSTER, 0, Measurement())])}), allow_nan=False)
    assert json.loads(text)["rows"][0]["per_s"] is None


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
def test_configurations_of_muster_are_valid(scenario: Scenario) -> None:
    assert Settings(**muster_config(scenario.deployment)).models["bench"].scaling.min_workers == (
        scenario.deployment.workers
    )


def test_bare_app_runs_without_accelerators() -> None:
    assert {name for name, scenario in SCENARIOS.items() if takes_part(YARDSTICK, scenario)} == {
        "noop",
        "noop-batched",
        "crowd",
        "large",
    }
    assert all(takes_part(MUSTER, scenario) for scenario in SCENARIOS.values())


def test_every_environment_has_one_pinned_requirement() -> None:
    names = {peer.environment for peer in PEERS.values() if isinstance(peer, Peer) and peer.environment}
    files = {file.name for file in environments.REQUIREMENTS.glob("peers-*.txt")}
    assert files == {f"peers-{name}.txt" for name in names}
    assert all(version.count(".") == 2 for version in peers.versions().values())


def test_unknown_names_on_the_command_line_raise() -> None:
    parse = peers.names_of(["muster", "mosec"], "server")
    assert parse("mosec,muster") == ["muster", "mosec"]
    with pytest.raises(argparse.ArgumentTypeError, match="unknown server torchserve; known: muster, mosec"):
        parse("muster,torchserve")


def test_recorded_command_has_no_folders() -> None:
    arguments = ["--envs", "/home/somebody/envs", "--json", "/somewhere/else/peers.json", "--rounds", "3"]
    assert list(peers.public(arguments)) == ["--json", "peers.json", "--rounds", "3"]


def test_user_model_computes_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS_FOLDER", str(tmp_path))
    from scripts.bench.serving.peers_lib.apps import user_model

    monkeypatch.setattr(user_model, "T0_S", 0.0)
    monkeypatch.setattr(user_model, "MODEL", "accelerator")
    model = user_model.UserModel()
    assert model.predict([1, 2, 3]) == [1, 2, 3]
    assert (tmp_path / "computed").read_text() == "111\n"
    assert [file.name.startswith("worker-") for file in tmp_path.glob("worker-*")] == [True]
