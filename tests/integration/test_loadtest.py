"""The load test with a real Locust, against a balancer with simulated workers. Locust has an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, ROOT
from scripts.loadtest_lib.locust_process import PYTHON_VARIABLE

pytestmark = pytest.mark.skipif(
    PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} names no Python with Locust (scripts/loadtest.py)"
)
WORDS = {"engine": "sim", "sim": {"task": "text", "t0_s": 0.001, "t1_s": 0.0, "load_s": 0.0}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = {"images": sim(max_batch_size=32), "words": WORDS}
    with running(tmp_path_factory.mktemp("loadtest") / "data", models) as started:
        yield started


def loadtest(server: Server, folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Return the exit status, the JSON and the page of a load test."""
    report, page = folder / "report.json", folder / "report.html"
    command = [sys.executable, str(ROOT / "scripts" / "loadtest.py"), "--url", server.base_url, *options]
    done = subprocess.run(
        [*command, "--json", str(report), "--html", str(page)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(report.read_text()), page.read_text()


def test_users_of_every_kind_are_answered(server: Server, tmp_path: Path) -> None:
    options = ("--users", "16", "--pause", "0.2", "--seconds", "5", "--mix", "image=1,edit=1,job=1,chat=1")
    status, report, page = loadtest(server, tmp_path, *options)
    assert report["errors"] == []
    assert status == 0
    kinds = {row["name"]: row["ok"] for row in report["kinds"]}
    assert kinds.keys() >= {"image", "image stream", "edit", "job", "chat", "chat stream"}
    assert all(kinds.values())
    assert report["durations"]["balancer's own share"]["count"] > 0
    assert report["durations"]["image: first preview"]["count"] > 0
    assert report["durations"]["chat: first token"]["count"] > 0
    # Without an admin key the server's state is not recorded, and the page says so.
    assert "scope admin" in report["sampling_problem"]
    assert "scope admin" in page


def test_open_loop_is_bounded_and_loses_nothing(server: Server, tmp_path: Path) -> None:
    options = ("--rate", "60", "--seconds", "4", "--max-in-flight", "2", "--mix", "image")
    status, report, _ = loadtest(server, tmp_path, *options)
    assert status == 1
    assert all("2 requests were in flight" in error["text"] for error in report["errors"])
    totals = report["totals"]
    assert totals["max_in_flight"] <= 2
    assert totals["errors"] > 0
    # Each planned request was answered, or counted as an error.
    sent = report["durations"]["sent later than planned"]["count"]
    assert sent == totals["ok"] + totals["refused"]
    assert totals["ok"] + totals["errors"] == pytest.approx(240, rel=0.3)
