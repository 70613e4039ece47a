"""The playground: what is refused is told beside its field, and what was typed or runs stays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S

PATIENCE_MS = PATIENCE_S * 1000
_MODELS = {
    "paint": sim(t0_s=0.05),
    "words": {"engine": "sim", "sim": {"task": "text", "load_s": 0.0}},
}


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    del browser  # not started where there is none
    with running(tmp_path_factory.mktemp("playground"), _MODELS, 1) as started:
        yield started


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    context = browser.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.base_url)
    opened = context.new_page()
    opened.goto(f"{server.base_url}/#playground")
    opened.get_by_role("button", name="Generate").wait_for(timeout=PATIENCE_MS)
    yield opened
    context.close()


def test_refused_value_is_told_beside_its_field_and_pictures_stay(page: Any) -> None:
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("img", name="Image 1", exact=True).wait_for(timeout=PATIENCE_MS)
    size = page.get_by_label("Size")
    size.fill("100x64")
    page.get_by_role("button", name="Generate").click()
    fault = page.get_by_role("alert").filter(has_text="Invalid value for 'size'")
    fault.wait_for(timeout=PATIENCE_MS)
    assert size.get_attribute("aria-describedby") == fault.get_attribute("id")
    page.locator('[aria-invalid="true"]:focus').wait_for(timeout=PATIENCE_MS)
    assert page.get_by_role("img", name="Image 1", exact=True).is_visible()
    size.fill("64x64")
    page.get_by_role("button", name="Generate").click()
    fault.wait_for(state="detached", timeout=PATIENCE_MS)
    page.get_by_role("status").get_by_text("1 of 1 image ready").wait_for(timeout=PATIENCE_MS)


def test_request_goes_on_behind_another_tab(page: Any) -> None:
    page.get_by_label("Steps").fill("100")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text(re.compile(r"step \d+ of 100")).wait_for(timeout=PATIENCE_MS)
    page.get_by_role("tab", name="Access").click()
    page.get_by_role("heading", name="Access").wait_for(timeout=PATIENCE_MS)
    page.get_by_role("tab", name="Playground").click()
    page.get_by_role("img", name="Image 1", exact=True).wait_for(timeout=PATIENCE_MS)
    page.reload()
    page.get_by_role("button", name="Generate").wait_for(timeout=PATIENCE_MS)
    assert page.get_by_label("Steps").input_value() == "100"


def test_copying_the_command_sends_no_request(page: Any) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    page.get_by_text("The request as a command").click()
    page.get_by_role("button", name="Python").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for(timeout=PATIENCE_MS)
    assert "httpx.post(" in page.evaluate("navigator.clipboard.readText()")
    assert sent == []


def test_refused_message_is_back_in_its_field(page: Any) -> None:
    page.locator("main").get_by_label("Model").first.select_option("words")
    page.get_by_label("Tokens at most").fill("1000000")
    page.get_by_label("Message", exact=True).fill("Count, please")
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text="Invalid value for 'max_tokens'").wait_for(timeout=PATIENCE_MS)
    assert page.get_by_label("Message", exact=True).input_value() == "Count, please"
    assert page.get_by_role("log").locator("article").count() == 0
    page.get_by_label("Tokens at most").fill("5")
    page.get_by_role("button", name="Send").click()
    page.get_by_text(re.compile("^5 tokens, first after")).wait_for(timeout=PATIENCE_MS)
