"""Makes the pictures of the page in `docs/page`: each tab, light and dark, of a server under load.

`python -m scripts.generate.page_screenshots` needs what `scripts/browser` installs.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from scripts.harness.instance import Instance
from scripts.harness.processes import ROOT
from tests.browser.conftest import CONFIG, browser_path

FOLDER = ROOT / "docs" / "page"
_SECONDS = 100
_TABS = ("now", "playground", "queue", "workers", "simulator", "keys")


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    instance = Instance(Path(tempfile.mkdtemp()), CONFIG)
    stop = threading.Event()
    try:
        instance.until(instance.is_ready, "a ready server")
        senders = [threading.Thread(target=_load, args=(instance.url, number, stop)) for number in range(9)]
        for sender in senders:
            sender.start()
        for second in range(_SECONDS):
            print(f"\rload for {_SECONDS - second} s ", end="", flush=True)
            time.sleep(1)
        playwright: Any = importlib.import_module("playwright.sync_api")
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=browser_path())
            for scheme in ("light", "dark"):
                _take(browser, instance.url, scheme)
        print(f"\rwrote {2 * len(_TABS)} pictures to {FOLDER.relative_to(ROOT)}")
    finally:
        stop.set()
        instance.end()
    return 0


def _load(url: str, number: int, stop: threading.Event) -> None:
    """Send requests of changing number until told to stop: a few senders always, the others at times."""
    while not stop.is_set():
        if number < 3 or int(time.monotonic() / 25) % 2:
            model = ("slow", "digits", "words")[number % 3]
            with contextlib.suppress(httpx.HTTPError):
                _send(url, model)
        stop.wait(0.5 + number / 4)


def _send(url: str, model: str) -> None:
    if model == "words":
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Count"}], "max_tokens": 120}
        httpx.post(f"{url}/v1/chat/completions", json=body | {"model": model}, timeout=60)
    else:
        body = {"prompt": "a handwritten seven", "n": 2, "num_inference_steps": 25}
        httpx.post(f"{url}/v1/images/generations", json=body | {"model": model}, timeout=60)


def _take(browser: Any, url: str, scheme: str) -> None:
    page = browser.new_context(viewport={"width": 1280, "height": 860}, color_scheme=scheme).new_page()
    page.goto(f"{url}/#now")
    for job in range(3):
        body = {"model": "digits", "prompt": f"a handwritten {job}", "n": 2, "num_inference_steps": 20}
        httpx.post(f"{url}/v1/jobs", json={"path": "/v1/images/generations", "body": body}, timeout=60)
    for tab in _TABS:
        page.goto(f"{url}/#{tab}")
        page.get_by_role("heading", level=2).wait_for()
        if tab == "now":  # the model that scales first
            for model in ("digits", "echo"):
                page.get_by_role("button", name=f"Charts of {model}").click()
        if tab == "playground":
            page.get_by_role("spinbutton", name="Images").fill("4")
            page.get_by_label("Steps").fill("25")
            page.get_by_role("button", name="Generate").click()
            page.get_by_role("img", name="Image 4", exact=True).wait_for(timeout=60_000)
        if tab == "simulator":
            _simulate(page)
        time.sleep(3)
        page.screenshot(path=FOLDER / f"{tab}-{scheme}.png")
    page.context.close()


def _simulate(page: Any) -> None:
    page.locator("main").get_by_label("Model").first.select_option("slow")  # the playground stays behind it
    page.get_by_label("Workers at least, settings A").fill("2")
    page.get_by_role("button", name="Add settings").click()
    page.get_by_label("Promised wait in seconds, settings B").fill("5")
    page.get_by_label("Price of a worker hour").fill("2.50")
    page.get_by_role("button", name="Simulate").click()
    page.get_by_role("region", name="Outcome", exact=True).wait_for(timeout=60_000)
    page.set_viewport_size({"width": 1280, "height": 1480})


if __name__ == "__main__":
    sys.exit(main())
