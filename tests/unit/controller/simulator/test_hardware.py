"""Simulated hardware: costs of steps and tokens, batches of texts, machines that fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.scaling import Scaling
from controller.simulator.cli import main, run
from controller.simulator.hardware import InvalidHardware, read_hardware
from controller.simulator.machines import MachineFailure, SimMachine, failures_of
from controller.simulator.model_sim import WorkerProfile
from controller.simulator.request_work import work_of
from controller.simulator.results import model_results
from controller.simulator.scenarios import Scenario, Traffic

FILE = """
image: {step_s: 0.05, pixels: 262144}
text: {prefill_tokens_per_s: 8000, decode_step_s: {1: 0.02, 4: 0.026, 8: 0.04}}
machines:
  a: {gpus: 2}
  b: {gpus: 3, mean_life_s: 3600, repair_s: 60}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "hardware.yaml"
    found.write_text(FILE)
    return found


def test_costs_of_images_and_texts(file: Path) -> None:
    costs = read_hardware(file).costs(3.0)
    assert work_of({"steps": "20", "width": "1024", "height": "512"}, costs) == pytest.approx(2.0)
    assert work_of({"input_tokens": "400", "output_tokens": "100"}, costs) == pytest.approx(0.05 + 2.0)
    assert work_of({}, costs) is None


def test_decode_curve_is_linear_between_measurements(file: Path) -> None:
    text = read_hardware(file).text
    assert text is not None
    assert text.slowdowns() == pytest.approx((1.0, 1.1, 1.2, 1.3, 1.475, 1.65, 1.825, 2.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text: {decode_step_s: {1: 0.02}}", "text.prefill_tokens_per_s: is required"),
        ("text: {prefill_tokens_per_s: 1, decode_step_s: {2: 0.02}}", "duration for a batch of 1 is needed"),
        ("text: {prefill_tokens_per_s: 1, decode_step_s: {1: 0.02, 2: 0.01}}", "2 texts takes less time than one of 1"),
        (
            "text: {prefill_tokens_per_s: 0, decode_step_s: {1: 0.02}}",
            "per_s = 0: must be greater than 0",
        ),
        ("text: {prefill_tokens_per_s: 1, decode_step_s: {9999: 1}}", "less than or equal to 4096"),
        ("machines: {a: {gpus: 0}}", "machines.a.gpus = 0: must be greater than or equal to 1"),
        ("machines: {a/b: {gpus: 1}}", "machines.a/b"),
        ("machine: {}", "machine: unknown key; did you mean `machines`"),
        ("image: {step_s: fast}", "image.step_s = 'fast': must be a valid number"),
        ("image: {", "not valid YAML"),
        ("7", "must be a section"),
    ],
)
def test_invalid_hardware_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "hardware.yaml"
    file.write_text(text)
    with pytest.raises(InvalidHardware, match=f"hardware.yaml: .*{says}"):
        read_hardware(file)


def scenario(machines: list[SimMachine], max_workers: int = 4) -> Scenario:
    traffic = Traffic([float(number) for number in range(1200)], [2.0] * 1200)
    scaling = Scaling(policy="static", min_workers=max_workers, max_workers=max_workers)
    profile = WorkerProfile("m", cold_starts_s=(20.0,))
    gpus = sum(machine.gpus for machine in machines)
    return Scenario({"m": traffic}, {"m": profile}, {"m": scaling}, gpus, 1200.0, machines=machines)


def test_machine_failure_ends_all_its_workers() -> None:
    given = scenario([SimMachine("a", 2), SimMachine("b", 2, mean_life_s=600.0, repair_s=300.0)])
    (failure, *later) = failures_of(given.machines, given.span_s, given.seed)
    result = run("static", given)
    (row,) = model_results("static", result)
    assert row.crashes >= 2
    assert row.unserved == 0
    history = result.models["m"].history
    ready_after = min(ready for at, _, ready in history if at >= failure.at)
    assert ready_after == 2
    # Its workers load after the repair.
    following = [at for at, _, ready in history if at > failure.at and ready > 2]
    assert following[0] >= failure.until + 20.0
    assert failure.slots == {"b/cuda:0", "b/cuda:1"}
    assert all(isinstance(one, MachineFailure) for one in later)


def test_equal_seeds_give_equal_failures() -> None:
    machines = [SimMachine(name, 1, mean_life_s=1000.0, repair_s=100.0) for name in "ab"]
    failures = failures_of(machines, 50_000.0, 3)
    assert failures == failures_of(machines, 50_000.0, 3)
    assert failures != failures_of(machines, 50_000.0, 4)
    assert len(failures) == pytest.approx(2 * 50_000 / 1100, rel=0.3)
    assert [failure.at for failure in failures] == sorted(failure.at for failure in failures)


def test_command_reads_hardware(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "texts.csv"
    rows = "".join(f"{number / 2},800,100\n" for number in range(600))
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + rows + "oops,800,100\n")
    options = [
        "--trace",
        str(trace),
        "--hardware",
        str(file),
        "--cold-start",
        "30",
        "--json",
        str(tmp_path / "out.json"),
    ]
    assert main([*options, "--bad-lines", "1", "--bound", "lower"]) == 0
    output = capsys.readouterr()
    assert "line 602: arrival_s ('oops')" in output.err
    assert "at most 5 workers" in output.out
    assert "600 requests of 2.1 s, batch 8" in output.out
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["unserved"] == 0
    for more, says in (
        ([], "1 bad line, and 0 are allowed"),
        (["--bad-lines", "1", "--gpus", "3"], "exclude each other"),
        (["--bad-lines", "1", "--bound", "search"], "supports no failures"),
        (["--bad-lines", "-1"], "must not be negative"),
    ):
        assert main([*options, *more]) == 2
        assert says in capsys.readouterr().err
