"""Virtual environments of programs that Muster is measured with, so that their dependencies do not meet."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from scripts.harness.processes import ROOT

REQUIREMENTS = ROOT / "scripts" / "bench" / "requirements"
DEFAULT_FOLDER = Path.home() / ".cache" / "muster-bench"
_INSTALL_TIMEOUT_S = 1200.0


class InstallError(Exception):
    """A program's packages could not be installed; the text is the reason."""


def environment(name: str, requirements: Path, folder: Path) -> Path:
    """Return the environment `name` in the folder. It is made where it is missing or of other requirements.

    Raises `InstallError` with pip's last line.
    """
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    place = folder / name
    stamp = place / "requirements.sha256"
    if stamp.exists() and stamp.read_text() == digest:
        return place
    _run(name, sys.executable, "-m", "venv", "--clear", str(place))
    pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run(name, *pip, "--requirement", str(requirements))
    stamp.write_text(digest)
    return place


def _run(name: str, *command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{name}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise InstallError(f"{name}: {lines[-1] if lines else f'exit status {done.returncode}'}")
