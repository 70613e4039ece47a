"""Run all experiments, one after the other.

    python -m scripts.bench.experiments.run_all --models FOLDER       # that scripts.text_models has written, or without

Takes about twenty minutes on two idle cores. An experiment that fails does not stop the others; the exit status is then
1. Results are in `scripts/bench/results/experiment_*.json`, pictures in `docs/experiment_*.png`, and the
table of `docs/experiments.md` is written again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from scripts.bench.experiments.page import EXPERIMENTS
from scripts.harness.processes import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="for text_batches")
    args = parser.parse_args()
    failed = []
    for name in EXPERIMENTS:
        options = ["--models", str(args.models.resolve())] if name == "text_batches" and args.models else []
        print(f"--- {name}", flush=True)
        command = [sys.executable, "-m", f"scripts.bench.experiments.{name}", *options]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(name)
    subprocess.run([sys.executable, "-m", "scripts.bench.experiments.page"], cwd=ROOT, check=False)
    print(f"failed: {', '.join(failed)}" if failed else "all experiments ran")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
