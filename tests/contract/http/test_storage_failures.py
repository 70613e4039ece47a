"""A model with `min_workers: 0`, and the arrival log."""

from __future__ import annotations

import csv

import httpx

from scripts.harness.balancer import sim
from scripts.harness.processes import PATIENCE_S, stop
from tests.conftest import StartServer


def test_model_with_min_workers_0_is_ready(server: StartServer) -> None:
    asleep = sim(scaling={"min_workers": 0})
    started = server({"asleep": asleep, "awake": sim()}, workers=0)
    with httpx.Client(base_url=started.base_url, timeout=PATIENCE_S) as http:
        assert http.get("/readyz").json()["error"]["message"] == "No worker is ready for: awake."
        started.wait_for_workers(started.start_worker("awake"))
        assert http.get("/readyz").json() == {"status": "ready"}
        assert http.get("/v1/models/asleep").json()["ready"] is False


def test_arrival_log_holds_no_private_data(server: StartServer) -> None:
    started = server(
        {"quick": sim(), "absent": sim(scaling={"min_workers": 0})},
        workers={"quick": 1},
        server={"record_arrivals": "seen.csv"},
    )
    with httpx.Client(base_url=started.base_url, timeout=PATIENCE_S) as http:
        body = {"model": "quick", "prompt": "a secret", "n": 2, "size": "32x64", "num_inference_steps": 5}
        assert http.post("/v1/images/generations", json=body).is_success
        assert http.post("/predict", json={"model": "absent", "prompt": "a secret", "timeout_s": 1}).status_code == 504
        assert http.post("/predict", json={"model": "quick", "prompt": "", "timeout_s": 1}).status_code == 400
    assert stop(started.balancer) == 0
    file = started.data_dir / "seen.csv"
    assert "secret" not in file.read_text()
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    what = [(row["model"], row["steps"], row["shape"], row["request_tasks"]) for row in rows]
    assert what == [("quick", "5", "32x64", "2")] * 2 + [("absent", "8", "64x64", "1")]
    assert [row["outcome"] for row in rows] == ["done", "done", "expired"]
    assert all(float(row["exec_s"]) > 0 for row in rows[:2])
    assert float(rows[2]["waited_s"]) >= 1.0
    assert rows[2]["exec_s"] == "", "no worker ever had it"
    assert float(rows[0]["arrived"]) <= float(rows[2]["arrived"])
