"""What is seen first: problems in words, and a row for each model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from scripts.harness.balancer import running, sim
from scripts.harness.processes import PATIENCE_S

PATIENCE_MS = PATIENCE_S * 1000


@pytest.fixture(scope="module")
def overview(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running(tmp_path_factory.mktemp("problems"), {"m": sim()}, 0) as server:
        page = browser.new_context().new_page()
        page.goto(server.base_url)
        yield page
        page.context.close()


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


_WELL = {"queued": 0, "running": 0, "oldest_wait_s": 0, "desired": 1, "ready": 1, "starting": 0, "crashes": 0}


@pytest.mark.parametrize(
    ("changed", "problems", "state"),
    [
        ({}, [], "ready"),
        ({"ready": 0, "starting": 1}, ["warn: m has no ready worker; 1 starting."], "starting"),
        ({"ready": 0, "queued": 2}, ["bad: m has no ready worker; none starting."], "too few workers"),
        ({"desired": 0, "ready": 0}, [], "scaled to zero"),
        ({"cannot_start": "no file", "ready": 0}, ["bad: m cannot start: no file"], "cannot start"),
        ({"blocked_reason": "no free device"}, ["bad: m: no free device"], "ready"),
        ({"crashes": 2}, ["bad: m: 2 crashes of workers in a row"], "crashes"),
        ({"oldest_wait_s": 12}, ["bad: m: a request waits for 12 s, where 10 s are promised."], "late"),
        ({"recent_started": 100, "recent_late": 1}, [], "ready"),
        (
            {"recent_started": 100, "recent_late": 7},
            ["warn: m: 7 of the 100 requests of the last ten minutes waited longer than 10 s."],
            "ready",
        ),
        ({"recent_started": 10, "recent_late": 10}, [], "ready"),
    ],
)
def test_problems_of_a_model(overview: Any, changed: dict[str, Any], problems: list[str], state: str) -> None:
    live = {"server": {"server": {"controller": True}}, "models": {"m": _WELL | changed}, "workers": {}, "devices": {}}
    found = overview.evaluate(
        """async (live) => {
            const { problemsOf, stateOf } = await import("/ui/files/problems.js");
            const found = problemsOf(live, [{ name: "m", max_wait_s: 10 }]);
            const problems = found.map(({ tone, text }) => `${tone}: ${text}`);
            return [problems, stateOf(live.models.m, 10)[1]];
        }""",
        live,
    )
    assert found == [problems, state]


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
