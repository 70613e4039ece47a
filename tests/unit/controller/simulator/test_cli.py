"""The commands `simulate` and `tune`, and the search for settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from configs.scaling import Scaling
from controller.simulator.cli import main
from controller.simulator.random_search import ParameterValues, search, search_space
from controller.simulator.results import PolicyResult
from controller.simulator.scaling_fields import InvalidScaling, nested_fields, parse_fields, with_fields
from controller.simulator.scenario_options import scenario_from
from controller.simulator.scenario_parser import make_parser
from controller.simulator.tune import main as tune


def test_search_finds_cheapest_settings_that_meet_goal() -> None:
    space = search_space("slo_work", Scaling(), 1)

    def evaluate(candidates: Sequence[ParameterValues]) -> list[PolicyResult]:
        # The cheapest settings that meet the goal have 20 s.
        drains = [one.get("drain_s", 60.0) for one in candidates]
        return [PolicyResult("p", "m", 1, 0, 1.0 if s >= 20 else 0.9, 0, 0, 0, s, 0, 0, 0, 1.0) for s in drains]

    best = search(space, 0.99, 80, evaluate, seed=1)
    assert best.result.in_slo == 1.0
    assert 20 <= best.settings["drain_s"] < 22
    assert search(space, 0.99, 80, evaluate, seed=1) == best


def test_dotted_fields_become_sections() -> None:
    assert nested_fields({"a": 1.0, "b.c": 2.0, "b.d.e": 3.0}) == {"a": 1.0, "b": {"c": 2.0, "d": {"e": 3.0}}}
    assert parse_fields(["interval_s=10", "slo.max_wait_s=5", "policy=static"]) == {
        "interval_s": 10,
        "slo": {"max_wait_s": 5},
        "policy": "static",
    }


def test_policy_change_keeps_shared_settings() -> None:
    scaling = Scaling(policy="queue_depth", scale_up_at=3, scale_down_at=1, max_workers=7)
    other = with_fields(scaling, {"policy": "slo_work", "feedback": {"gain": 0.02}})
    assert (other.policy, other.max_workers, other.feedback.gain) == ("slo_work", 7, 0.02)


def test_fields_of_options_are_merged() -> None:
    assert parse_fields(["scaling.slo.max_wait_s=5", "slo.percentile=90"]) == {
        "slo": {"max_wait_s": 5, "percentile": 90}
    }
    assert parse_fields(["slo=5", "slo.max_wait_s=4"]) == {"slo": {"max_wait_s": 4}}
    with pytest.raises(InvalidScaling, match="slo = 5: must be a section"):
        with_fields(Scaling(), parse_fields(["slo.max_wait_s=4", "slo=5"]))
    for pair in ("=1", "a..b=1", "interval_s"):
        with pytest.raises(InvalidScaling, match="must be KEY=VALUE"):
            parse_fields([pair])


def test_aliases_replace_their_fields() -> None:
    scaling = Scaling(min_workers=1, max_workers=7)
    assert with_fields(scaling, {"max_replicas": 3}).max_workers == 3


# ---- the command


def test_command_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "muster.yaml"
    model = {"engine": "sim", "max_batch_size": 4, "scaling": {"max_workers": 3}}
    config.write_text(yaml.safe_dump({"models": {"m": model}}))
    options = ["--config", str(config), "--trace", "synthetic:poisson?rate=0.2&hours=0.1"]
    options += ["--policy", "slo_work", "--policy", "hpa", "--policy", "peak", "--bound", "search"]
    assert main([*options, "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]) == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert {row["policy"] for row in result["rows"]} == {"slo_work", "hpa", "peak"}
    assert all(row["ratio"] >= 0.99 for row in result["rows"])
    assert all(0 < row["lower_bound_hours"] <= row["best_hours"] for row in result["rows"])
    assert all(row["policy"] in shown for row in result["rows"])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--trace", "none.csv"], "cannot be read"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--policy", "best"], "no such policy: best"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--gpus", "0"], "--gpus"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--f0", "2"], "--f0"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--bound", "low"], "lower or search"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--cold-start", "0"], "--cold-start"),
        (["--trace", "synthetic:poisson?hours=0.1", "--curve", "1,0.5"], "--curve"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--hours", "x"], "--hours"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--policy", "nowhere.to:be"], "nowhere"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--policy", "schedule"], "needs entries"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--set", "interval_s=-1"], "interval_s"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--set", "interval_s"], "KEY=VALUE"),
        (
            ["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--set", "intervall_s=1"],
            "intervall_s = 1: unknown key; did you mean `interval_s`? allowed: min_workers, ",
        ),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--hours", "5-6"], "no requests in --hours 5-6"),
        (["--trace", "synthetic:poisson?rate=0", "--preset", "s2"], "synthetic:poisson?rate=0 has no requests"),
        (["--trace", "synthetic:poisson?work=1e300", "--preset", "s2"], "work (1e+300) must be at most"),
        (["--trace", "synthetic:poisson?hours=1e6&rate=1e-6", "--preset", "s2"], "hours (1e+06) must be at most 8784"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--stretch", "2"], "--stretch is for recorded"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--hours", "5-1"], "--hours 5-1 must be"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--bucket", "nan"], "--bucket (nan)"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--gpus", "99999"], "at most 4096"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--batch", "99999"], "at most 4096"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--mean-life", "0.1"], "at least 1 s"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--curve", "1,2", "--batch", "2"], "excludes"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--curve", ""], "must be numbers"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--config", "a.yaml"], "exclude each other"),
        (
            ["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--start", "soon"],
            "is no number and no date",
        ),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--start", "1e300"], "between the years"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--json", "."], "--json . is a folder"),
        (
            ["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--json", "none/a.json"],
            "there is no folder",
        ),
        (["--trace", "a.csv", "--preset", "s2", "--json", "./a.csv"], "--json a.csv is the trace"),
        (["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--plot", "a.txt"], "must end in .png"),
        (
            ["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--set", "slo.max_wait=1"],
            "slo.max_wait = 1: unknown key; did you mean `max_wait_s`? allowed: max_wait_s, percentile",
        ),
        (
            ["--trace", "synthetic:poisson?hours=0.1", "--preset", "s2", "--set", "max_workers=0"],
            "max_workers = 0: must be greater than or equal to 1 or 'auto'",
        ),
    ],
)
def test_invalid_options_are_rejected(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--trace", "--json", "--plot"])
def test_link_to_itself_is_rejected(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "loop.png"
    link.symlink_to(link)
    files = {"--trace": "synthetic:poisson?hours=0.1", "--json": str(tmp_path / "out.json")} | {option: str(link)}
    assert main(["--preset", "s2", *(word for pair in files.items() for word in pair)]) == 2
    assert f"{link} is a link that leads back to itself" in capsys.readouterr().err


def test_models_keep_their_own_policies(tmp_path: Path) -> None:
    config, trace = tmp_path / "muster.yaml", tmp_path / "trace.csv"
    models = {
        name: {"engine": "sim", "scaling": {"max_workers": 2, "policy": policy}}
        for name, policy in (("a", "static"), ("b", "queue_depth"))
    }
    config.write_text(yaml.safe_dump({"models": models}))
    trace.write_text("arrival_s,model,exec_s\n" + "".join(f"{n},{'ab'[n % 2]},3\n" for n in range(120)))
    assert main(["--config", str(config), "--trace", str(trace), "--json", str(tmp_path / "out.json")]) == 0
    model_results = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["policy"], row["model"], row["requests"]) for row in model_results] == [
        ("as configured", "a", 60),
        ("as configured", "b", 60),
        ("as configured", "all", 120),
    ]
    assert model_results[0]["cold_starts"] == 0


SCHEDULED = """
models:
  m:
    engine: sim
    scaling:
      policy: schedule
      max_workers: 8
      schedule:
        - {cron: "0 8 * * 1-5", workers: 6, timezone: Europe/Berlin}
        - {cron: "0 19 * * 1-5", workers: 1, timezone: Europe/Berlin}
"""


@pytest.mark.parametrize(
    ("trace", "options", "begins", "workers"),
    [
        ("arrival_s\n0\n3599\n", [], "Thursday, 1970-01-01 00:00", 1),
        ("arrival_s\n0\n3599\n", ["--start", "2026-11-30T07:00:00Z"], "Monday, 2026-11-30 07:00", 6),
        ("timestamp\n2026-11-30T07:00:00Z\n2026-11-30T07:59:59Z\n", [], "Monday, 2026-11-30 07:00", 6),
        ("timestamp\n2026-11-30T06:00:00Z\n2026-11-30T07:59:59Z\n", ["--hours", "1-"], "Monday, 2026-11-30 07:00", 6),
        ("arrived\n1796022000\n1796025599\n", [], "Monday, 2026-11-30 07:00", 6),
        ("timestamp\n1796022000000\n1796025599000\n", ["--stretch", "0.001"], "Monday, 2026-11-30 07:00", 6),
        ("arrival_s\n2026-11-30T18:00:00Z\n2026-11-30T18:59:59Z\n", [], "Monday, 2026-11-30 18:00", 1),
    ],
)
def test_schedule_follows_the_dates_of_the_trace(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trace: str,
    options: list[str],
    begins: str,
    workers: int,
) -> None:
    config, file = tmp_path / "muster.yaml", tmp_path / "trace.csv"
    config.write_text(SCHEDULED)
    file.write_text(trace)
    results = tmp_path / "out.json"
    assert main(["--config", str(config), "--trace", str(file), *options, "--json", str(results)]) == 0
    assert f"the trace begins on {begins} UTC" in capsys.readouterr().out
    samples = json.loads(results.read_text())["samples"]["schedule"]["m"]
    assert {sample["desired"] for sample in samples[2:-1]} == {workers}


def test_model_without_requests_has_no_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, trace = tmp_path / "muster.yaml", tmp_path / "trace.csv"
    config.write_text(yaml.safe_dump({"models": {name: {"engine": "sim"} for name in "ab"}}))
    trace.write_text("arrival_s,model,exec_s\n0,b,2\n1,b,2\n")
    assert main(["--config", str(config), "--trace", str(trace), "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["model"], row["wait_p99_s"]) for row in rows] == [("a", None), ("b", 1.0), ("all", 1.0)]
    assert "never" not in capsys.readouterr().out


def test_automatic_maximum_is_the_number_of_simulated_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "muster.yaml"
    devices = {"simulated": [{"memory": "24GiB", "count": 3}]}
    config.write_text(yaml.safe_dump({"devices": devices, "models": {"m": {"engine": "sim"}}}))
    assert main(["--config", str(config), "--trace", "synthetic:poisson?rate=0.1&hours=0.1"]) == 0
    assert "at most 3 workers" in capsys.readouterr().out


@pytest.mark.parametrize("source", [["--preset", "s2"], ["--config", "muster.yaml"]])
@pytest.mark.parametrize(
    ("options", "cold_starts_s", "standby_start_s"),
    [
        ([], (40.0,), 5.0),
        (["--set", "cold_start_s=12", "--set", "standby_start_s=3"], (12.0,), 3.0),
        (["--set", "cold_start_s=12", "--cold-start", "7", "--standby-start", "2"], (7.0,), 2.0),
    ],
)
def test_start_times_are_those_of_the_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: list[str],
    options: list[str],
    cold_starts_s: tuple[float, ...],
    standby_start_s: float,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "muster.yaml").write_text(yaml.safe_dump({"models": {"m": {"engine": "sim"}}}))
    args = make_parser("test", "").parse_args(["--trace", "synthetic:poisson?hours=0.1", *source, *options])
    profile = scenario_from(args).profiles["m"]
    assert (profile.cold_starts_s, profile.standby_start_s) == (cold_starts_s, standby_start_s)


def test_fields_of_the_named_policy_can_be_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trace", "synthetic:poisson?rate=0.5&hours=0.2", "--preset", "s2"]
    more = ["--policy", "queue_depth", "--set", "scale_up_at=0.1", "--set", "scale_down_at=0"]
    assert main([*options, *more, "--json", str(tmp_path / "out.json")]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (row["policy"], row["cold_starts"]) == ("queue_depth", 11)
    assert tune([*options, "--policy", "queue_depth", "--set", "scale_up_hold_s=3", "--tries", "1", "--jobs", "1"]) < 2
    assert main([*options, "--set", "scale_up_at=0.1"]) == 2
    assert "set policy: queue_depth" in capsys.readouterr().err


def test_trace_must_name_the_models_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "muster.yaml"
    config.write_text(yaml.safe_dump({"models": {name: {"engine": "sim"} for name in "ab"}}))
    assert main(["--config", str(config), "--trace", "synthetic:poisson?rate=0.1&hours=0.1"]) == 2
    said = capsys.readouterr().err
    assert "several models (a, b)" in said
    assert "no column `model`" in said


def test_custom_policy_is_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_to_simulate.py").write_text(
        "from controller.types import Decision\n\n\ndef two(observation):\n    return Decision(2, 'two is company')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = [
        "--preset",
        "s2",
        "--trace",
        "synthetic:poisson?rate=0.1&hours=0.2",
        "--json",
        str(tmp_path / "out.json"),
    ]
    assert main([*options, "--policy", "mine_to_simulate:two"]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["cold_starts"] == 1


# ---- tune


def test_tune_prints_valid_settings(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trace", "synthetic:poisson?rate=0.5&hours=0.4", "--preset", "s3", "--within", "8", "--goal", "90"]
    status = tune([*options, "--tries", "9", "--jobs", "1"])
    output = capsys.readouterr()
    found = Scaling.model_validate(yaml.safe_load(output.out)["scaling"])
    assert (found.policy, found.slo.max_wait_s, found.slo.percentile) == ("slo_work", 8, 90)
    assert "on the rest, with the defaults" in output.err
    assert status == ("is not met" in output.err)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--part", "1"], "--part (1) must be between 0 and 1"),
        (["--goal", "nan"], "--goal (nan) must be between 0 and 100"),
        (["--tries", "0"], "--tries (0) must be at least 1"),
        (["--jobs", "-3"], "--jobs (-3) must be at least 1"),
        (["--policy", "static"], "no settings to search"),
        (["--part", "0.001"], "both parts of the trace must have requests"),
    ],
)
def test_tune_rejects_invalid_options(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(["--trace", "synthetic:poisson?rate=0.05&hours=0.2", "--preset", "s2", *options]) == 2
    assert says in capsys.readouterr().err
