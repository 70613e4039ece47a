#!/usr/bin/env python3
"""Attack a running server of simulated workers as strangers, customers, workers and accidents would.

    scripts/attack.py
    scripts/attack.py --only "header" --json attacks.json

It starts its own server on loopback and ends it. For each attack the table shows what is allowed and what was seen:
the answer, the growth of the balancer's memory, the longest answer of /healthz meanwhile, and bytes of log.

Exit status 1: a bound was broken. The folder with the logs is then not removed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import ensure_venv  # noqa: F401 - first: it may restart in the venv

# isort: split
import argparse
import json
import shlex
import shutil
import tempfile

from rich.console import Console

from scripts.attack_lib.report import as_json, table
from scripts.attack_lib.run import run_attacks
from scripts.harness.load import machine


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the profile of the tests")
    parser.add_argument("--only", metavar="TEXT", default="", help="only attacks whose name contains this text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was seen to this file")
    parser.add_argument("--stall-factor", type=float, default=1.0, help="multiplies allowed stalls, on a busy machine")
    args = parser.parse_args()
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="muster-attack-"))

    def show(name: str, broken: bool) -> None:
        console.print(f"{'BROKEN' if broken else 'held  '}  {name}", markup=False, highlight=False)

    outcomes = run_attacks(
        folder / "data", only=args.only, is_short=args.short, factor=args.stall_factor, progress=show
    )
    console.print(table(outcomes))
    if args.json is not None:
        command = shlex.join(["scripts/attack.py", *sys.argv[1:]])
        seen = {"command": command, "machine": machine(), "attacks": as_json(outcomes)}
        args.json.write_text(json.dumps(seen, indent=1) + "\n")
    if any(outcome.broken for outcome in outcomes):
        print(f"logs: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
