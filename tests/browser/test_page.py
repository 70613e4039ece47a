"""The page in a browser: every tab, requests from the playground, and what the charts and lists then show."""

from __future__ import annotations

import re
import threading
from typing import Any

import httpx
import pytest
import yaml

from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S

TABS = ["now", "playground", "queue", "workers", "simulator", "keys"]
PATIENCE_MS = PATIENCE_S * 1000


def goto(page: Any, instance: Instance, tab: str, model: str | None = None) -> None:
    page.goto(f"{instance.url}/#{tab}")
    page.get_by_role("heading", level=2).wait_for(timeout=PATIENCE_MS)
    if model is not None:
        page.locator("main").get_by_label("Model").first.select_option(model)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_is_accessible(tab: Any, instance: Instance, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: scripts/browser")
    tab.emulate_media(color_scheme=scheme)
    for name in TABS:
        goto(tab, instance, name)
        found = axe.Axe().run(tab).response["violations"]
        assert [f"{each['id']}: {each['help']}" for each in found] == [], name


def test_tabs_are_reached_by_keyboard_and_survive_a_reload(tab: Any, instance: Instance) -> None:
    goto(tab, instance, "now")
    tab.get_by_role("tab", name="Workers and devices").focus()
    tab.keyboard.press("Enter")
    tab.get_by_role("heading", name="Workers and devices").wait_for(timeout=PATIENCE_MS)
    tab.keyboard.press("ArrowRight")
    assert tab.locator(":focus").inner_text() == "Simulator"
    tab.keyboard.press("Home")
    assert tab.locator(":focus").inner_text() == "Now"
    tab.reload()
    tab.get_by_role("heading", name="Workers and devices").wait_for(timeout=PATIENCE_MS)
    assert tab.get_by_role("tab", name="Workers and devices").get_attribute("aria-selected") == "true"
    tab.get_by_role("region", name="Workers").get_by_text(re.compile("^digits-")).wait_for(timeout=PATIENCE_MS)


def test_image_comes_with_previews_and_is_edited_with_a_mask(tab: Any, instance: Instance) -> None:
    goto(tab, instance, "playground", "digits")
    tab.get_by_label("Steps").fill("20")
    tab.get_by_label("Seed").fill("7")
    previews: list[str] = []
    tab.expose_function("notePreview", lambda text: previews.append(text))
    tab.evaluate(
        """new MutationObserver(() => {
            const shown = document.querySelector('img.preview');
            if (shown) notePreview(shown.alt);
        }).observe(document.body, {subtree: true, childList: true, attributes: true})"""
    )
    tab.get_by_role("button", name="Generate").click()
    made = tab.get_by_role("img", name="Image 1", exact=True)
    made.wait_for(timeout=PATIENCE_MS)
    assert previews, "a preview was shown in place of the picture"
    assert tab.get_by_text("seed 7").is_visible()
    before = made.get_attribute("src")
    tab.get_by_role("button", name="Edit", exact=True).click()
    canvas = tab.get_by_label(re.compile("^Mask"))
    box = canvas.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6, steps=5)
    tab.mouse.up()
    with tab.expect_request("**/v1/images/edits") as sent:
        tab.get_by_role("button", name="Edit", exact=True).first.click()
    assert b'name="mask"' in (sent.value.post_data_buffer or b"")
    is_new = "before => ![undefined, before].includes(document.querySelector('img[alt=\"Image 1\"]')?.src)"
    tab.wait_for_function(is_new, arg=before, timeout=PATIENCE_MS)
    assert tab.get_by_text("seed 7").is_visible()


@pytest.mark.parametrize("name", TABS)
def test_tab_fits_on_a_phone(tab: Any, instance: Instance, name: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    goto(tab, instance, name)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    selected = tab.get_by_role("tab", selected=True).bounding_box()
    assert selected["x"] >= 0
    assert selected["x"] + selected["width"] <= 390


def test_request_is_shown_as_a_command(tab: Any, instance: Instance) -> None:
    goto(tab, instance, "playground", "digits")
    tab.get_by_label("Prompt").fill("it's a 'seven'")
    tab.get_by_text("The request as a command").click()
    tab.get_by_role("button", name="Copy").click()
    tab.get_by_role("button", name="Copied").wait_for(timeout=PATIENCE_MS)
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"curl {instance.url}/v1/images/generations")
    assert "it'\\''s a" in copied


def test_stopped_request_leaves_the_queue(tab: Any, instance: Instance) -> None:
    goto(tab, instance, "playground", "slow")
    tab.get_by_role("spinbutton", name="Steps").fill("150")
    tab.get_by_role("button", name="Generate").click()
    tab.get_by_text(re.compile(r"step \d+ of 150")).wait_for(timeout=PATIENCE_MS)
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_text("Stopped.").wait_for(timeout=PATIENCE_MS)
    goto(tab, instance, "queue", "slow")
    tab.get_by_text("Nothing waits or runs.").wait_for(timeout=PATIENCE_MS)


def test_failed_job_tells_its_reason_and_is_deleted(tab: Any, instance: Instance) -> None:
    body = {"model": "slow", "prompt": "sim:fail"}
    made = httpx.post(f"{instance.url}/v1/jobs", json={"path": "/v1/images/generations", "body": body}, timeout=60)
    job = made.json()["id"]
    goto(tab, instance, "queue")
    row = tab.get_by_role("region", name="Jobs").get_by_role("row").filter(has_text=job)
    row.get_by_text(re.compile("^failed: .")).wait_for(timeout=PATIENCE_MS)
    tab.get_by_role("button", name=f"Delete {job}").click()
    row.wait_for(state="detached", timeout=PATIENCE_MS)


def test_chat_streams_and_stops(tab: Any, instance: Instance) -> None:
    goto(tab, instance, "playground", "words")
    tab.get_by_label("Tokens at most").fill("20")
    tab.get_by_label("Message", exact=True).fill("Count, please")
    tab.keyboard.press("Enter")
    tab.get_by_text(re.compile(r"^20 tokens, first after")).wait_for(timeout=PATIENCE_MS)
    tab.get_by_label("Tokens at most").fill("4000")
    tab.get_by_label("Message", exact=True).fill("More")
    tab.get_by_role("button", name="Send").click()
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_text("stopped", exact=True).wait_for(timeout=PATIENCE_MS)
    assert tab.get_by_role("log").locator("article").count() == 4


def test_engine_is_called_with_json(tab: Any, instance: Instance) -> None:
    goto(tab, instance, "playground", "echo")
    tab.get_by_label("Input as JSON").fill('{"a": [1, 2]}')
    tab.get_by_role("button", name="Call").click()
    tab.get_by_role("region", name="Result").get_by_text('"a"').wait_for(timeout=PATIENCE_MS)
    tab.get_by_label("Input as JSON").fill("{")
    assert tab.get_by_role("button", name="Call").is_disabled()


def test_load_scales_up_and_the_page_says_why(tab: Any, instance: Instance) -> None:
    goto(tab, instance, "now")
    model = tab.get_by_role("region", name="Model slow")
    model.get_by_text(re.compile(r"\d ready")).wait_for(timeout=PATIENCE_MS)
    body = {"model": "slow", "prompt": "a seven", "n": 4, "num_inference_steps": 60}
    senders = [
        threading.Thread(
            target=httpx.post, args=(f"{instance.url}/v1/images/generations",), kwargs={"json": body, "timeout": 120}
        )
        for _ in range(2)
    ]
    for sender in senders:
        sender.start()
    model.get_by_text("3 ready").wait_for(timeout=PATIENCE_MS)
    model.get_by_text("Last decisions").click()
    assert model.get_by_text(re.compile(r"^[12] → [23]$")).count() >= 1
    for sender in senders:
        sender.join()


def test_administrator_scales_by_hand(tab: Any, instance: Instance) -> None:
    goto(tab, instance, "workers")
    commands = tab.get_by_role("region", name="Commands")
    commands.get_by_label("Model").select_option("echo")
    commands.get_by_label("Workers").fill("2")
    commands.get_by_role("button", name="Scale").click()
    workers = tab.get_by_role("region", name="Workers").get_by_text(re.compile("^echo-"))
    workers.nth(1).wait_for(timeout=PATIENCE_MS)
    commands.get_by_role("button", name="Back to policy").click()
    commands.get_by_role("status").get_by_text(re.compile("^(?!Sent)")).wait_for(timeout=PATIENCE_MS)


def test_administrator_restarts_one_worker(tab: Any, instance: Instance) -> None:
    goto(tab, instance, "workers")
    button = tab.get_by_role("button", name=re.compile("^Restart words-"))
    name = (button.first.get_attribute("aria-label") or "").removeprefix("Restart ")
    button.first.click()
    tab.get_by_role("status").get_by_text(f"{name} is being replaced").wait_for(timeout=PATIENCE_MS)
    tab.get_by_role("region", name="Workers").get_by_text(name, exact=True).wait_for(
        state="detached", timeout=PATIENCE_MS
    )
    button.first.wait_for(timeout=PATIENCE_MS)


def test_settings_are_simulated_and_copied(tab: Any, instance: Instance) -> None:
    body = {"instances": [{"a": 1}]}
    assert httpx.post(f"{instance.url}/v1/models/echo:predict", json=body, timeout=60).is_success
    goto(tab, instance, "simulator", "echo")
    tab.get_by_label("Traffic").select_option("An invented day")
    tab.get_by_role("button", name="Simulate").click()
    tab.get_by_role("progressbar", name="Progress of the simulation").wait_for(timeout=PATIENCE_MS)
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_label("Traffic").select_option("Last hour")
    tab.get_by_label("Workers at least, settings A").fill("2")
    tab.get_by_role("button", name="Add settings").click()
    tab.get_by_label("Promised wait in seconds, settings B").fill("3")
    tab.get_by_label("Price of a worker hour").fill("2.50")
    tab.get_by_role("button", name="Simulate").click()
    outcome = tab.get_by_role("region", name="Outcome", exact=True)
    outcome.wait_for(timeout=PATIENCE_MS)
    assert outcome.get_by_role("region").locator("tbody th").all_inner_texts() == [
        *("What really happened", "Present settings, simulated", "Settings A", "Settings B")
    ]
    outcome.get_by_text("within 3 s, as it promises").wait_for(timeout=PATIENCE_MS)
    outcome.get_by_role("button", name="B", exact=True).click()
    outcome.get_by_role("button", name="Copy").click()
    outcome.get_by_role("button", name="Copied").wait_for(timeout=PATIENCE_MS)
    copied = yaml.safe_load(tab.evaluate("navigator.clipboard.readText()"))
    assert copied == {"models": {"echo": {"scaling": {"slo": {"max_wait_s": 3}}}}}
    tab.get_by_label("Workers at least, settings A").fill("9")
    tab.get_by_label("Workers at most, settings A").fill("4")
    tab.get_by_role("button", name="Simulate").click()
    tab.get_by_role("alert").get_by_text("more workers at least than at most").wait_for(timeout=PATIENCE_MS)
