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
import argparse
import contextlib
import json
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from controller.simulator.trace_rows import InvalidTrace
from scripts.harness.environments import InstallError
from scripts.loadtest_lib.html_report import render_report
from scripts.loadtest_lib.locust_process import locust_command, locust_python
from scripts.loadtest_lib.options import make_plan, parse_options
from scripts.loadtest_lib.report import full_report, summary_table
from scripts.loadtest_lib.running import LocustFailed, run_locust, write_picture
from scripts.loadtest_lib.sampler import ServerSampler
from scripts.loadtest_lib.target import (
    Target,
    TargetError,
    read_config,
    running_target,
    simulated_config,
    started_target,
)

_NO_RESULT = 2


@contextlib.contextmanager
def target_of(options: argparse.Namespace, console: Console) -> Iterator[Target]:
    """Yield the server under test. Raises `TargetError`."""
    if options.url is not None:
        yield running_target(options.url, options.key_file, options.admin_key_file)
        return
    config = read_config(options.config) if options.config is not None else simulated_config(options.workers)
    with console.status("starting the server"):
        stack = contextlib.ExitStack()
        target = stack.enter_context(started_target(config))
    with stack:
        yield target


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the test and return the report. Raises the errors that `main` prints."""
    with console.status("the environment of Locust"):
        python = locust_python()
    with tempfile.TemporaryDirectory(prefix="muster-loadtest-") as place, target_of(options, console) as target:
        plan = make_plan(options, target.url, target.models(), Path(place))
        write_picture(plan)
        command = locust_command(python, plan, options.web_port if options.web else None)
        if options.web:
            console.print(f"Locust's page: http://127.0.0.1:{options.web_port} (Ctrl-C ends the test)")
        with ServerSampler(target) as sampler:
            reader = run_locust(command, plan, console, has_end=not options.web)
        return full_report(sys.argv[1:], options, plan, reader.seconds, sampler)


def main() -> int:
    """Return the exit status."""
    options = parse_options(sys.argv[1:], __doc__ or "")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is stopped on the way out
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it
    console = Console()
    try:
        data = measure(options, console)
    except (InstallError, TargetError, InvalidTrace, ValueError) as error:
        console.print(f"cannot test: {error}", style="red", highlight=False)
        return _NO_RESULT
    except LocustFailed as error:
        console.print(f"Locust has measured nothing:\n{error}", style="red", highlight=False)
        return _NO_RESULT
    console.print(summary_table(data))
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.html:
        options.html.write_text(render_report(data))
    return int(data["totals"]["errors"] > 0)


if __name__ == "__main__":
    sys.exit(main())
