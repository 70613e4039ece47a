"""What a program imports that serves nothing yet: libraries of single features come with their first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.harness.processes import PATIENCE_S, ROOT

MODELS = {"accelerate", "diffusers", "numpy", "peft", "scipy", "torch", "transformers"}


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("loadbalancer.__main__", MODELS | {"PIL", "aiohttp", "difflib", "psutil", "rich"}),
        ("controller.serve", MODELS | {"PIL", "aiohttp", "difflib", "fastapi", "pynvml", "rich", "uvicorn", "zmq"}),
    ],
)
def test_idle_program_has_not_imported(program: str, absent: set[str]) -> None:
    code = f"import sys, {program}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert absent.isdisjoint(done.stdout.split())
