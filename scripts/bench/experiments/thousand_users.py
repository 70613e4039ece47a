"""Are more than 1,000 concurrent users served for five minutes without an error?

    python -m scripts.bench.experiments.thousand_users

Published (Lightning AI, December 2022): more than 1,000 users in production. Here Locust has 1,050 users of all kinds
(`scripts/loadtest.py`), who pause for 30 s on average. They arrive within a minute and stay for five. Accelerators are
simulated at the published speed of an A100, and autoscaling is between 6 and 24 workers. The exit status is 1 after an
error other than 429, if the balancer's own share of the latency has a p99 of 50 ms or more, or if its memory grows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from scripts.bench.experiments.experiment import add_outputs, write_result
from scripts.loadtest_lib.html_report import OWN_SHARE_BOUND_MS
from scripts.loadtest_lib.load_test import run_load_test
from scripts.loadtest_lib.options import parse_options

USERS = 1050
_RAMP_S, _HOLD_S = 60, 300
ARGUMENTS = ("--users", str(USERS), "--pause", "30", "--workers", "24")


def measure(hold_s: float, console: Console) -> dict[str, Any]:
    """Return the report of the load test, with the checks."""
    argv = [*ARGUMENTS, "--ramp", str(_RAMP_S), "--seconds", f"{_RAMP_S + hold_s:g}"]
    report = run_load_test(parse_options(argv, ""), argv, console)
    load_test = report.pop("command")
    checks = checks_of(report)
    summary = summary_of(report, checks)
    published = {"users": 1000}
    return {"summary": summary, "published": published, "load_test": load_test, "checks": checks} | report


def summary_of(report: Mapping[str, Any], checks: Mapping[str, bool]) -> str:
    """Return the report in one line, with what does not hold."""
    totals, memory = report["totals"], report["memory"] or {}
    failing = [name for name, holds in checks.items() if not holds]
    parts = [
        f"{totals['max_users']:,} users, {totals['ok']:,} answers",
        f"{totals['errors']} errors, {totals['refused']} times 429",
        f"p99 of the own share {totals['own_share_p99_ms']} ms",
        f"memory {memory.get('half_mib')} to {memory.get('last_mib')} MiB in the second half",
        *([f"does not hold: {', '.join(failing)}"] if failing else []),
    ]
    return "; ".join(parts)


def checks_of(report: Mapping[str, Any]) -> dict[str, bool]:
    """Return what must hold, by name."""
    totals, memory = report["totals"], report["memory"]
    share = totals["own_share_p99_ms"]
    return {
        "more than 1000 users": totals["max_users"] > 1000,
        "no error other than 429": totals["errors"] == 0,
        "own share p99 below 50 ms": share is not None and share < OWN_SHARE_BOUND_MS,
        "memory is flat": bool(memory and memory.get("is_flat")),
    }


def draw(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw users, rate and workers, and the latency with the balancer's own share."""
    left, right = axes
    series = result["series"]
    left.plot(series["at_s"], series["users"], label="users")
    left.plot(series["at_s"], series["in_flight"], label="requests in flight")
    left.plot(series["at_s"], [10 * (each or 0) for each in series["workers"]], label="workers, times 10")
    for name, label in (("p50_ms", "p50"), ("p95_ms", "p95"), ("own_share_p99_ms", "p99 of the balancer's own share")):
        right.plot(series["at_s"], series[name], label=label)
    right.set_yscale("log")
    right.axhline(OWN_SHARE_BOUND_MS, color="black", linewidth=0.8)
    left.set(xlabel="seconds", ylim=(0, None))
    right.set(xlabel="seconds", ylabel="latency, ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=_HOLD_S, help="after the ramp (default 300)")
    add_outputs(parser, "thousand_users")
    args, console = parser.parse_args(), Console()
    write_result("thousand_users", args, draw, console, lambda: measure(args.seconds, console))
    return int(not all(json.loads(args.json.read_text())["checks"].values()))


if __name__ == "__main__":
    sys.exit(main())
