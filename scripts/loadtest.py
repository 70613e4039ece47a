#!/usr/bin/env python3
"""Put a server under load with Locust, and write a report with plots.

    scripts/loadtest.py --users 200 --seconds 120 --html report.html --json report.json
    scripts/loadtest.py --rate 20 --shape spike --seconds 180 --html report.html
    scripts/loadtest.py --shape replay --recording arrivals.csv --compression 24 --html report.html
    scripts/loadtest.py --url https://muster.example.com --key-file key --users 50 --web

Without `--url` it starts a server of simulated accelerators, or that of `--config`, and ends it. On first use it makes
an environment with Locust in `~/.cache/muster-bench/loadtest`, from `scripts/bench/requirements/loadtest.txt`.

`--users` is a closed loop: each user waits for an answer, pauses, and sends again. `--rate` and `replay` are an open
loop: requests are sent when they are due, and latency counts from then. What is in flight is bounded by
`--max-in-flight`; a request beyond it is not sent and counts as an error.

`--web` opens Locust's page on loopback; Ctrl-C ends the test and writes the report. The exit status is 1 after errors
other than 429, and 2 if nothing could be measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import ensure_venv  # noqa: F401 - first: it may run this program again in `.venv`

# isort: split
import json
import signal

from rich.console import Console

from controller.simulator.trace_rows import InvalidTrace
from scripts.harness.environments import InstallError
from scripts.loadtest_lib.html_report import render_report
from scripts.loadtest_lib.load_test import run_load_test
from scripts.loadtest_lib.options import parse_options
from scripts.loadtest_lib.report import summary_table
from scripts.loadtest_lib.running import LocustFailed
from scripts.loadtest_lib.target import TargetError

_NO_RESULT = 2


def main() -> int:
    """Return the exit status."""
    options = parse_options(sys.argv[1:], __doc__ or "")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is stopped on the way out
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it
    console = Console()
    try:
        data = run_load_test(options, sys.argv[1:], console)
    except (InstallError, TargetError, InvalidTrace, ValueError) as error:
        console.print(f"cannot test: {error}", style="red", highlight=False)
        return _NO_RESULT
    except LocustFailed as error:
        console.print(f"Locust did not run to its end:\n{error}", style="red", highlight=False)
        return _NO_RESULT
    console.print(summary_table(data))
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.html:
        options.html.write_text(render_report(data))
    return int(data["totals"]["errors"] > 0)


if __name__ == "__main__":
    sys.exit(main())
