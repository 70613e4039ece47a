"""The agent's command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from configs.cli import EXIT_USAGE
from scripts.harness.processes import PATIENCE_S


def test_own_configuration_has_no_models(tmp_path: Path) -> None:
    config = tmp_path / "box.yaml"
    config.write_text("agent: {max_fetched_bytes: 0}\n")
    words = ["--agent", "--config", str(config), "--data-dir", str(tmp_path / "data"), "--join", "tcp://127.0.0.1:5555"]
    command = [sys.executable, "-m", "worker", *words, "--key-file", str(tmp_path / "missing")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == EXIT_USAGE
    assert "missing" in done.stderr, "the key is what lacks, not a model"
