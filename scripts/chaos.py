#!/usr/bin/env python3
"""Inject faults into a running server under load, and count violations; there should be none.

    scripts/chaos.py --minutes 5 --seed 7

Starts the server on loopback, with API keys, and sends a mixed load: plain, streamed and durable requests, clients that
close the connection early, and slow readers. Meanwhile workers, balancer and controller receive SIGKILL, SIGTERM and
SIGSTOP by a schedule that follows from the seed. Five profiles share the minutes: `digits`, the built-in model on two
workers, `sim`, simulated accelerators that the controller scales between two and twelve, `calls`, an engine that a user
wrote, `texts`, simulated language models, and `machines`, where whole machines die, hang and are cut off.

The exit status is 1 if a request was lost, answered twice or answered wrongly, or if a slot or process remains. The
violations are then printed, and the folder with the programs' logs is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import ensure_venv  # noqa: F401 - first: it may run this program again in `.venv`

# isort: split
import argparse
import asyncio
import json
import shutil
import tempfile

from rich.console import Console

from scripts.chaos_lib.profiles import PROFILES
from scripts.chaos_lib.report import MUST_BE_ZERO, summary, table, to_json
from scripts.chaos_lib.run import ChaosResult, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="duration, of all profiles together")
    parser.add_argument("--seed", type=int, default=7, help="seed of requests and faults")
    parser.add_argument("--profile", nargs="+", choices=tuple(PROFILES), default=list(PROFILES))
    parser.add_argument("--json", type=Path, help="write the table and its details to this file")
    args = parser.parse_args()
    console = Console()
    seconds = 60.0 * args.minutes / len(args.profile)
    results = [_run(name, args.seed, seconds, console) for name in args.profile]
    console.print(table(results))
    if args.json:
        args.json.write_text(json.dumps([to_json(result) for result in results], indent=1) + "\n")
    return max(_print_violations(result, console) for result in results)


def _run(name: str, seed: int, seconds: float, console: Console) -> ChaosResult:
    folder = Path(tempfile.mkdtemp(prefix=f"muster-chaos-{name}-"))
    with console.status(name) as line:
        return asyncio.run(run(PROFILES[name], seed, seconds, folder, lambda text: line.update(f"{name}: {text}")))


def _print_violations(result: ChaosResult, console: Console) -> int:
    """Print the violations, if there are any, and return the exit status."""
    numbers = summary(result)
    if not any(numbers[name] for name in MUST_BE_ZERO):
        shutil.rmtree(result.folder)
        return 0
    for line in [
        *result.violations,
        *result.log,
        f"{result.profile.name}: logs and configuration are in {result.folder}",
    ]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
