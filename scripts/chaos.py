#!/usr/bin/env python3
"""Break everything, on purpose and by plan, while clients ask; then count what was lost. It should be nothing.

    scripts/chaos.py --minutes 5 --seed 7

Starts the real server on loopback, with API keys, and lets a mixed load at it: plain, streamed and durable requests,
clients that leave in the middle, clients that hardly read. Meanwhile workers, balancer and controller are killed, told
to stop, and held, by a schedule that follows from the seed. Two profiles share the minutes: `digits`, the built-in
model on two workers, and `sim`, simulated accelerators that the controller scales between two and twelve.

Exit status 1 where anything was lost, answered twice, wrong, leaked or left behind: what is known is printed, and the
folder with the programs' logs is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import ensure_venv  # noqa: F401 - first: it may begin again elsewhere

# isort: split
import argparse
import asyncio
import json
import shutil
import tempfile

from rich.console import Console

from scripts.chaos_lib.profiles import PROFILES
from scripts.chaos_lib.report import MUST_BE_ZERO, as_tree, summary, table
from scripts.chaos_lib.run import Verdict, run


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="length of load and troubles, of all profiles")
    parser.add_argument("--seed", type=int, default=7, help="of requests and troubles")
    parser.add_argument("--profile", choices=(*PROFILES, "both"), default="both")
    parser.add_argument("--json", type=Path, help="write what is in the table, and what lies under it, here")
    args = parser.parse_args()
    console = Console()
    names = list(PROFILES) if args.profile == "both" else [args.profile]
    verdicts = [_run(name, args.seed, 60.0 * args.minutes / len(names), console) for name in names]
    console.print(table(verdicts))
    if args.json:
        args.json.write_text(json.dumps([as_tree(verdict) for verdict in verdicts], indent=1) + "\n")
    return max(_conclude(verdict, console) for verdict in verdicts)


def _run(name: str, seed: int, seconds: float, console: Console) -> Verdict:
    folder = Path(tempfile.mkdtemp(prefix=f"muster-chaos-{name}-"))
    with console.status(name) as line:
        return asyncio.run(run(PROFILES[name], seed, seconds, folder, lambda text: line.update(f"{name}: {text}")))


def _conclude(verdict: Verdict, console: Console) -> int:
    """Whether something is wrong, with all that is known of it."""
    numbers = summary(verdict)
    if not any(numbers[name] for name in MUST_BE_ZERO):
        shutil.rmtree(verdict.folder)
        return 0
    for line in [*verdict.faults, *verdict.log, f"{verdict.profile.name}: everything is kept in {verdict.folder}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
