"""A data directory that is removed while the server runs."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TextIO

import httpx

from scripts.harness.balancer import sim
from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S, is_alive, stop, wait_until

BODY = {"prompt": "a seven"}
JOB = {"path": "/predict", "body": BODY}


def test_what_runs_is_served_and_nothing_is_started(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    instance = Instance(folder, {"models": {"m": sim(scaling={"min_workers": 2, "max_workers": 2})}})
    try:
        first, _ = instance.until_workers(2)
        instance.until(instance.is_ready, "a ready server")
        records = instance.records()
        with (
            (folder / "controller.log").open() as controller_log,
            (folder / "logs" / "loadbalancer.log").open() as balancer_log,
            httpx.Client(base_url=instance.url, timeout=PATIENCE_S) as http,
        ):
            wait_until(lambda: is_removed(folder), "the end of the folder")
            wait_until(lambda: "nothing is started" in all_of(controller_log), "the sentence of the controller")
            check_answers(http, folder)
            os.kill(records[first.worker].pid, signal.SIGKILL)
            wait_until(lambda: "died (signal 9)" in all_of(controller_log), "the end of a worker")
            check_answers(http, folder)
            assert stop(instance.process) == 0
            output = all_of(controller_log)
            assert output.count("starting worker") == 2
            assert output.count("nothing is started") == 1
            assert "Traceback" not in output + all_of(balancer_log)
        assert not [name for name, record in records.items() if is_alive(record.pid)]
        assert not folder.exists()
    finally:
        instance.end()


def is_removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)  # a file may appear in it meanwhile
    return not folder.exists()


def all_of(log: TextIO) -> str:
    log.seek(0)
    return log.read()


def check_answers(http: httpx.Client, folder: Path) -> None:
    job, readiness, image = http.post("/v1/jobs", json=JOB), http.get("/readyz"), http.post("/predict", json=BODY)
    assert (job.status_code, job.json()["error"]["code"]) == (503, "storage_unavailable")
    assert "the data directory of the server was removed" in job.json()["error"]["message"]
    assert (readiness.status_code, readiness.json()["error"]["code"]) == (503, "storage_unavailable")
    assert f"the data directory {folder} was removed" in readiness.json()["error"]["message"]
    assert image.is_success
