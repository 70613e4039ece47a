"""One load test: the server, Locust, the samples, the report."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.loadtest_lib.locust_process import locust_command, locust_python
from scripts.loadtest_lib.options import make_plan
from scripts.loadtest_lib.report import full_report
from scripts.loadtest_lib.running import run_locust, write_picture
from scripts.loadtest_lib.sampler import ServerSampler
from scripts.loadtest_lib.target import Target, read_config, running_target, simulated_config, started_target


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


def run_load_test(options: argparse.Namespace, argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Start the server and Locust, and return the report of the test.

    Raises `InstallError`, `TargetError`, `LocustFailed`, `InvalidTrace`, and `ValueError` if nothing can be sent.
    """
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
        return full_report(argv, options, plan, reader.seconds, sampler)
