"""The environment of Locust, and the process that runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.harness.environments import DEFAULT_FOLDER, REQUIREMENTS, environment
from scripts.harness.processes import ROOT
from scripts.loadtest_lib.plan import VARIABLE, LoadPlan

#: A Python that has Locust already.
PYTHON_VARIABLE = "MUSTER_TEST_LOCUST_PYTHON"
_LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def locust_python(folder: Path = DEFAULT_FOLDER) -> Path:
    """Return a Python with Locust: the variable's, or that of an environment that is made on first use.

    Raises `InstallError`.
    """
    if given := os.environ.get(PYTHON_VARIABLE):
        return Path(given)
    return environment("loadtest", REQUIREMENTS / "loadtest.txt", folder) / "bin" / "python"


def locust_command(python: Path, plan: LoadPlan, web_port: int | None) -> list[str]:
    """Return the command: without a window, or with the web page of Locust on this port of loopback."""
    command = [str(python), "-m", "locust", "--locustfile", str(_LOCUSTFILE), "--host", plan.url]
    command += ["--loglevel", "WARNING", "--stop-timeout", f"{plan.timeout_s + 10:g}"]
    if plan.processes > 1:
        command += ["--processes", str(plan.processes)]
    if web_port is None:
        return [*command, "--headless", "--only-summary"]
    return [*command, "--web-host", "127.0.0.1", "--web-port", str(web_port)]


def start_locust(command: Sequence[str], plan: LoadPlan) -> subprocess.Popen[bytes]:
    """Start Locust with the plan. Its output is `locust.log` in the plan's folder."""
    file = plan.folder / "plan.json"
    plan.write(file)
    variables = dict(os.environ) | {VARIABLE: str(file), "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    with (plan.folder / "locust.log").open("wb") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=plan.folder,
            env=variables,
            start_new_session=sys.platform != "win32",
        )
