"""Compare all policies on recorded traffic of language models, with prompts and outputs of known lengths.

    python -m scripts.bench.autoscaling.text_fleet --traces FOLDER --json scripts/bench/results/autoscaling_text.json

The folder has `azure_llm_2023_conv.csv` (Azure's public trace of 2023) and `servegen_mid_day.csv` (ServeGen, language
m-mid, day 4), with the columns `arrival_s`, `input_tokens` and `output_tokens`. All is simulated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from controller.policies import POLICIES
from controller.simulator import table
from controller.simulator.cli import run
from controller.simulator.cost_bounds import cost_bounds
from controller.simulator.reference import BASELINES
from controller.simulator.results import model_results
from controller.simulator.scenario_options import describe, scenario_from
from controller.simulator.scenario_parser import make_parser

_FOLDER = Path(__file__).parent
#: Options of `simulate` by trace.
_SCENARIOS = {
    "azure_llm_2023_conv.csv": ("text_gpu.yaml", "--gpus=12", "--cold-start=60", "--set=initial_workers=3"),
    "servegen_mid_day.csv": ("text_cpu.yaml", "--gpus=12", "--cold-start=40"),
}
_POLICIES = [*(name for name in POLICIES if name not in ("schedule", "static")), *BASELINES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    console, found = Console(width=120), {}
    for trace, (hardware, *options) in _SCENARIOS.items():
        given = ["--trace", str(args.traces / trace), "--hardware", str(_FOLDER / hardware), *options]
        scenario = scenario_from(make_parser("text_fleet", "").parse_args(given))
        (name,) = scenario.profiles
        bounds = cost_bounds("lower", scenario).of_model(name)
        rows = [model_results(policy, run(policy, scenario))[0].with_bounds(*bounds) for policy in _POLICIES]
        table.print_table(console, f"{trace}: {describe(scenario)}", rows, [])
        options_text = f"--hardware scripts/bench/autoscaling/{hardware} {' '.join(options)}"
        what = {"what": describe(scenario), "options": options_text}
        found[trace] = {**what, "rows": [row.as_json() for row in rows]}
    args.json.write_text(json.dumps({"engine": "simulated engine", "traces": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
