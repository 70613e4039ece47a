#!/usr/bin/env python3
"""Say everything to a running balancer and to a running worker that nobody should say, and see that neither minds.

    scripts/fuzz.py --minutes 10 --seed 7

Half of the time intruders come to the balancer's own socket: messages of every kind with fields at random, damaged
ones, earlier ones, noise, headers beyond all bounds, results of tasks that are others', workers in hundreds. The other
half a worker is told as much by what it takes for its balancer. Honest requests come in between. What follows from the
seed is what is said; when it arrives is up to the machine.

Exit status 1 where something crashed, hung, grew, was not counted, was left over, or an honest request was not answered
right; the folder with the programs' logs is kept then.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import ensure_venv  # noqa: F401 - first: it may begin again elsewhere

# isort: split
import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from scripts.fuzz_lib import fuzz_balancer, fuzz_worker
from scripts.harness.balancer import running

DIGITS: dict[str, Any] = {
    "digits": {"path": "builtin:digits", "defaults": {"size": "64x64", "steps": 20}, "limits": {"min_side": 32}}
}


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="length of all of it")
    parser.add_argument("--seed", type=int, default=7, help="of what is said")
    parser.add_argument("--digits", action="store_true", help="the worker runs the built-in model, not a simulated one")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="muster-fuzz-"))
    seconds = 30.0 * args.minutes
    faults = [
        *_balancer(folder / "balancer", args.seed, seconds),
        *_worker(folder / "worker", args.seed, seconds, DIGITS if args.digits else fuzz_worker.MODELS),
    ]
    for fault in faults:
        print(f"FAULT: {fault}")
    if faults:
        print(f"everything is kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _balancer(folder: Path, seed: int, seconds: float) -> list[str]:
    with running(folder, fuzz_balancer.MODELS, {fuzz_balancer.HONEST: 1}, life=fuzz_balancer.LIFE) as server:
        siege = fuzz_balancer.Siege(server, seed)
        _for(seconds, siege.burst)
        print(f"balancer: {_told(siege.end())}")
    return siege.faults


def _worker(folder: Path, seed: int, seconds: float, models: Mapping[str, Any]) -> list[str]:
    folder.mkdir()
    madness = fuzz_worker.Madness(folder, seed, models)
    try:
        _for(seconds, madness.burst)
        print(f"worker: {_told(madness.end())}")
    except AssertionError as error:  # it has ended, or answers no more
        return [str(error)]
    finally:
        madness.kill()
    return madness.faults


def _for(seconds: float, burst: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        burst()


def _told(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


if __name__ == "__main__":
    sys.exit(main())
