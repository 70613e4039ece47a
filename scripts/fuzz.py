#!/usr/bin/env python3
"""Send malformed and out-of-order messages to a running balancer and a running worker; both must keep serving.

    scripts/fuzz.py --minutes 10 --seed 7

For half of the time, fake workers send to the balancer's socket: messages of every type with random fields, damaged
and repeated ones, noise, oversized headers, and results of other workers' tasks. For the other half, a fake balancer
sends the like to a worker. Valid requests in between must succeed. The seed determines the messages, not their timing.

Exit status 1: a program crashed, hung or grew, a message was not counted, a task remained, or a valid request got a
wrong response. The folder with the logs is then not removed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import ensure_venv  # noqa: F401 - first: it may restart in the venv

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
    parser.add_argument("--minutes", type=float, default=2.0, help="total duration")
    parser.add_argument("--seed", type=int, default=7, help="seed of the messages")
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
        print(f"logs: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _balancer(folder: Path, seed: int, seconds: float) -> list[str]:
    with running(folder, fuzz_balancer.MODELS, {fuzz_balancer.HONEST: 1}, life=fuzz_balancer.LIFE) as server:
        fuzzer = fuzz_balancer.BalancerFuzzer(server, seed)
        _for(seconds, fuzzer.burst)
        print(f"balancer: {_describe(fuzzer.end())}")
    return fuzzer.faults


def _worker(folder: Path, seed: int, seconds: float, models: Mapping[str, Any]) -> list[str]:
    folder.mkdir()
    fuzzer = fuzz_worker.WorkerFuzzer(folder, seed, models)
    try:
        _for(seconds, fuzzer.burst)
        print(f"worker: {_describe(fuzzer.end())}")
    except AssertionError as error:  # it has ended, or answers no more
        return [str(error)]
    finally:
        fuzzer.kill()
    return fuzzer.faults


def _for(seconds: float, burst: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        burst()


def _describe(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


if __name__ == "__main__":
    sys.exit(main())
