"""The page of a server that is suspended, killed and started again: it says so, and goes on by itself."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest

from scripts.harness.balancer import running, sim
from scripts.harness.processes import PATIENCE_S, launch

PATIENCE_MS = PATIENCE_S * 1000


def test_lost_server_is_shown_until_it_is_back(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("lost"), {"sim": sim()}, 1) as server:
        page = browser.new_context().new_page()
        page.goto(f"{server.base_url}/#now")
        page.get_by_role("region", name="Model sim").wait_for(timeout=PATIENCE_MS)
        lost = page.get_by_role("alert").filter(has_text="No connection to the server")
        lost.wait_for(state="detached", timeout=PATIENCE_MS)
        server.balancer.send_signal(signal.SIGSTOP)
        lost.get_by_text(re.compile(r"What you see is from \d\d:\d\d:\d\d")).wait_for(timeout=PATIENCE_MS)
        assert page.title().startswith("Not connected")
        server.balancer.send_signal(signal.SIGCONT)
        lost.wait_for(state="detached", timeout=PATIENCE_MS)
        server.balancer.kill()
        server.balancer.wait(PATIENCE_S)
        lost.wait_for(timeout=PATIENCE_MS)
        options = ["--config", str(server.config), "--port", str(server.port)]
        server.balancer = launch("loadbalancer", server.data_dir, *options, log="loadbalancer")
        lost.wait_for(state="detached", timeout=PATIENCE_MS)
        page.get_by_role("status").get_by_text("live").wait_for(timeout=PATIENCE_MS)
        assert not page.title().startswith("Not connected")
        page.context.close()


def test_request_to_a_lost_server_says_so_in_words(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("lost"), {"sim": sim()}, 1) as server:
        page = browser.new_context().new_page()
        page.goto(f"{server.base_url}/#playground")
        page.get_by_role("button", name="Generate").wait_for(timeout=PATIENCE_MS)
        server.balancer.kill()
        server.balancer.wait(PATIENCE_S)
        page.get_by_role("button", name="Generate").click()
        page.get_by_role("alert").get_by_text("The server cannot be reached").first.wait_for(timeout=PATIENCE_MS)
        page.context.close()
