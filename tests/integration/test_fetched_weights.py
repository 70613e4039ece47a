"""A box with no files of a model: its agent fetches the weights by their hashes, and a worker serves from them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import httpx

from controller.launchers.local import BALANCER
from scripts.harness.agents import agent_process
from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S, ROOT, free_port

ENGINE = """
class Echo:
    def load(self, device): pass
    def predict(self, items: list[str]) -> list[str]: return items
"""


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of each file by its path below the folder."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_worker_starts_from_weights_fetched_by_hash(tmp_path: Path) -> None:
    source, port = tmp_path / "models" / "tiny", free_port()
    shutil.copytree(ROOT / "worker" / "builtin" / "tiny-text", source)
    (tmp_path / "echo.py").write_text(ENGINE)
    devices = {"devices": {"use": "cpu", "cpu_slots": 1}}
    one = {"scaling": {"min_workers": 1, "max_workers": 1}}
    config = devices | {
        # The server's only slot is for the first model, so the second one has to wait for the box.
        "workers": {"listen": f"tcp://127.0.0.1:{port}", "share_after_s": 3600},
        "models": {
            "echo": one | {"engine": str(tmp_path / "echo.py:Echo")},
            "tiny": one | {"engine": "text", "path": str(source), "warm_up": {"measure_s": 0}},
        },
    }
    head = Instance(tmp_path / "head", config)
    try:
        head.until(lambda: BALANCER in head.records(), "the balancer")
        head.until_logged("tiny: 1 more wanted, but every device is taken")
        with agent_process(tmp_path / "box", "box", head.folder, f"tcp://127.0.0.1:{port}", devices) as box:
            head.until_workers(2)
            [worker] = [each for each in head.workers() if each.model == "tiny"]
            assert worker.worker.startswith("box:"), box.log()
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "What is 3 plus 4?"}]}
            answer = httpx.post(f"{head.url}/v1/chat/completions", json=asked, timeout=PATIENCE_S)
            assert answer.status_code == 200, answer.text
            assert "7" in answer.json()["choices"][0]["message"]["content"]
            fetched = digests(tmp_path / "box" / "weights")
        kept = {hashed for name, hashed in digests(source).items() if not name.startswith("EVALUATION")}
        assert kept <= set(fetched.values()), fetched
    finally:
        head.end()
