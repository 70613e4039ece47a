"""Workers in another Python environment: it sees Muster's packages and no others of Muster's environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from configs.logs import start_failure
from configs.worker_packages import WORKER_PACKAGES, link_packages

ROOT = Path(__file__).parents[3]


def test_links_follow_the_source(tmp_path: Path) -> None:
    folder = link_packages(tmp_path / "old", tmp_path / "python")
    assert link_packages(ROOT, tmp_path / "python") == link_packages(ROOT, tmp_path / "python") == folder
    assert {link.name: link.readlink() for link in folder.iterdir()} == {
        name: ROOT / name for name in ("configs", "muster", "wire", "worker")
    }


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *arguments],
        env=env | {"PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_missing_packages_are_named_with_the_command(tmp_path: Path) -> None:
    done = run_python(link_packages(ROOT, tmp_path), "-S", "-m", "worker.bootstrap", "--model", "digits")
    assert done.returncode == 4
    packages = " ".join(WORKER_PACKAGES.values())
    assert start_failure(done.stderr).endswith(f"-m pip install {packages}")


def test_worker_imports_few_packages(tmp_path: Path) -> None:
    """What an engine's environment must have, and what would cost time and memory there."""
    own = tmp_path / "engine.py"
    own.write_text("class Engine:\n    def predict(self, items): return items\n    def example(self): return 1\n")
    code = (
        "import sys, worker.__main__ as main; "
        f"status = main.main(['--check-engine', {str(own)!r}  + ':Engine']); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(status)"
    )
    done = run_python(link_packages(ROOT, tmp_path / "python"), "-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    imported = set(done.stderr.splitlines()[-1].split())
    assert imported >= {"msgspec", "psutil", "pydantic", "yaml", "zmq"}
    assert not imported & {"numpy", "PIL", "torch", "filelock", "cronsim", "fastapi", "aiohttp", "rich", "loadbalancer"}
