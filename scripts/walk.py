#!/usr/bin/env python3
"""Count the functions and files that one image request and one scaling look pass through.

    scripts/walk.py                    # this checkout
    scripts/walk.py --list             # each function, in the order of its first call
    scripts/walk.py --against 1627787  # an earlier commit beside it

Starts the real programs with a profile hook and a simulated model. Nine equal requests are traced from the HTTP front
to the response, in the load balancer and in the worker. What most of them call is the way of a request. One look of the
controller is traced that makes a scaling decision.
Only functions of the product count, with methods, properties and lambdas. A comprehension or generator expression is
part of the function around it, on every version of Python. Generated methods, hits of a cache, imports and what runs
without a request (ticks, the device monitor) do not count.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import ensure_venv  # noqa: F401 - first: it restarts this script in .venv when packages are missing

# isort: split
import argparse
import subprocess
import tempfile

from rich.console import Console
from rich.table import Table

from scripts.walk_lib.measure import Walk, request_walk, scaling_walk

_COUNTED = (
    "Counted: functions, methods, properties and lambdas, once for each program. Comprehensions and generator "
    "expressions are part of the function around them. Generated methods and hits of a cache are not counted."
)
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print each function")
    parser.add_argument("--against", metavar="REV", help="measure this commit as well")
    args = parser.parse_args()
    console = Console()
    trees = {"now": ROOT}
    with tempfile.TemporaryDirectory(prefix="muster-walk-") as folder:
        if args.against:
            before = Path(folder) / "before"
            subprocess.run(["git", "worktree", "add", "-q", "--detach", before, args.against], cwd=ROOT, check=True)
            trees = {args.against: before} | trees
        try:
            walks = {}
            for name, tree in trees.items():
                with console.status(f"{name}: one request"):
                    walks[name, "image request"] = request_walk(tree)
                with console.status(f"{name}: one scaling look"):
                    walks[name, "scaling look"] = scaling_walk(tree)
        finally:
            if args.against:
                subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    console.print(_table(walks))
    console.print(_COUNTED, highlight=False)
    if args.list:
        for (name, what), walk in walks.items():
            console.rule(f"{what}, {name}")
            for step in walk.steps:
                console.print(f"  {step.program:13} {step.file}:{step.function}", highlight=False, soft_wrap=True)
    return 0


def _table(walks: dict[tuple[str, str], Walk]) -> Table:
    table = Table("path", "checkout", "functions", "files", "changes of file", "by program")
    for (name, what), walk in sorted(walks.items(), key=lambda item: item[0][1]):
        parts = ", ".join(f"{program} {count}" for program, count in walk.by_program.items())
        table.add_row(what, name, str(walk.functions), str(walk.files), str(walk.file_changes), parts)
    return table


if __name__ == "__main__":
    sys.exit(main())
