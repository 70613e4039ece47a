"""What is seen first: problems in words, and a row for each model."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from scripts.harness.balancer import running, sim
from scripts.harness.processes import PATIENCE_S

PATIENCE_MS = PATIENCE_S * 1000


def test_silent_worker_and_late_request_are_told_first(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = sim(max_batch_size=1) | {"scaling": {"slo": {"max_wait_s": 1}}}
    job = {"path": "/v1/images/generations", "body": {"model": "sim", "prompt": "a seven", "n": 4}}
    life = {"heartbeat_s": 0.2}
    with running(tmp_path_factory.mktemp("overview"), {"sim": model}, 1, life=life) as server:
        page = browser.new_context().new_page()
        page.goto(f"{server.base_url}/#now")
        summary = page.get_by_role("region", name="Summary")
        summary.get_by_text("1 note.").wait_for(timeout=PATIENCE_MS)  # it has no controller
        summary.get_by_text("These workers have had no request yet.").wait_for(timeout=PATIENCE_MS)
        with server.stopped():
            assert httpx.post(f"{server.base_url}/v1/jobs", json=job, timeout=PATIENCE_S).is_success
            summary.get_by_text("Worker sim-0 sends no sign of life.").wait_for(timeout=PATIENCE_MS)
            summary.get_by_text(re.compile(r"^sim: a request waits for .*, where 1.0 s are promised")).wait_for(
                timeout=PATIENCE_MS
            )
        summary.get_by_text("1 note.").wait_for(timeout=PATIENCE_MS)
        page.context.close()


def test_charts_of_a_model_are_hidden_and_shown(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("charts"), {"first": sim(), "second/long": sim()}, 1) as server:
        page = browser.new_context().new_page()
        page.goto(f"{server.base_url}/#now")
        charts = page.get_by_role("region", name="Model second/long")
        charts.get_by_role("img", name=re.compile("^Workers: ")).wait_for(timeout=PATIENCE_MS)
        button = page.get_by_role("button", name="Charts of second/long")
        button.click()
        charts.wait_for(state="detached", timeout=PATIENCE_MS)
        page.get_by_role("tab", name="Access").click()
        page.get_by_role("tab", name="Now").click()
        page.get_by_role("region", name="Model first").wait_for(timeout=PATIENCE_MS)
        assert charts.count() == 0
        button.click()
        charts.wait_for(timeout=PATIENCE_MS)
        page.context.close()
