"""The page of a server with API keys: it asks for one, and shows what its scopes allow."""

from __future__ import annotations

from typing import Any

import pytest

from loadbalancer.access.api_keys import fingerprint
from scripts.harness.balancer import running, sim
from scripts.harness.processes import PATIENCE_S

PATIENCE_MS = PATIENCE_S * 1000


def test_scopes_decide_what_is_shown(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    keys = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys.write_text(
        "keys:\n"
        f"  painter: {{sha256: {fingerprint('sk-painter')}, scopes: [images], requests_per_minute: 60}}\n"
        f"  chief: {{sha256: {fingerprint('sk-chief')}, scopes: [images, admin]}}\n"
    )
    keys.chmod(0o600)
    folder = tmp_path_factory.mktemp("keyed")
    with running(folder, {"sim": sim()}, 1, access={"keys_file": str(keys)}) as server:
        page = browser.new_context().new_page()
        page.goto(server.base_url)
        page.get_by_text("This server asks for an API key.").wait_for(timeout=PATIENCE_MS)
        assert page.get_by_role("alert").count() == 0  # nothing was wrong yet
        page.get_by_label("API key").fill("sk-wrong")
        page.get_by_role("button", name="Enter").click()
        page.get_by_role("alert").get_by_text("Incorrect API key provided.").wait_for(timeout=PATIENCE_MS)
        page.get_by_label("API key").fill("sk-painter")
        page.get_by_role("button", name="Enter").click()
        page.get_by_role("tab", name="Playground").wait_for(timeout=PATIENCE_MS)
        page.get_by_role("button", name="Generate").click()
        page.get_by_role("img", name="Image 1", exact=True).wait_for(timeout=PATIENCE_MS)
        assert page.get_by_role("tab").all_inner_texts() == ["Playground", "Queue and jobs", "Access"]
        page.get_by_role("tab", name="Access").click()
        page.get_by_role("region", name="Own limits").get_by_text("painter").wait_for(timeout=PATIENCE_MS)
        usage = page.get_by_role("region", name="Use by key")
        page.get_by_role("heading", name="Own use").wait_for(timeout=PATIENCE_MS)
        usage.get_by_text("painter").wait_for(timeout=PATIENCE_MS)
        assert usage.locator("tbody tr").count() == 1
        assert "sk-painter" not in page.content()
        assert "sk-painter" not in page.evaluate("JSON.stringify([localStorage, sessionStorage, location.href])")
        page.reload()
        page.get_by_label("API key").fill("sk-chief")  # it was in memory only
        page.get_by_role("button", name="Enter").click()
        page.get_by_role("tab", name="Now").click()
        page.get_by_role("region", name="Model sim").wait_for(timeout=PATIENCE_MS)
        page.get_by_role("tab", name="Access").click()
        page.get_by_role("heading", name="Use by key").wait_for(timeout=PATIENCE_MS)
        page.get_by_role("rowheader", name="painter").wait_for(timeout=PATIENCE_MS)  # it made the image
        page.context.close()
