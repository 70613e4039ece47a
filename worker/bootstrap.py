"""`python -m worker.bootstrap`: `python -m worker` in an environment that may lack packages.

It says in one line what is missing, where the import of the worker would end in a traceback.
"""

from __future__ import annotations

import runpy
import sys

from configs.logs import CANNOT_START
from configs.worker_packages import environment_problem, missing_packages

_EXIT_CANNOT_START = 4


def main() -> int:
    """Run the worker, which ends the process. Returns 4 if it cannot run here."""
    problem = environment_problem(sys.executable, sys.version_info[:2], missing_packages())
    if problem:
        print(f"{CANNOT_START}{problem}", file=sys.stderr)
        return _EXIT_CANNOT_START
    runpy.run_module("worker", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
