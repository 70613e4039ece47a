"""A real browser before a real server. `scripts/browser` installs what these tests need."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from scripts.harness.instance import Instance

_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
#: Scaled up by a few waiting requests: one at a time, of half a second each.
_SLOW = {
    "engine": "sim",
    "max_batch_size": 1,
    "defaults": {"size": "64x64", "steps": 8},
    "sim": {"t0_s": 0.06, "t1_s": 0.0, "load_s": 0.0},
    "scaling": {"min_workers": 1, "max_workers": 3, "interval_s": 1, "slo": {"max_wait_s": 1}},
}
#: A model of each kind.
CONFIG = {
    "server": {"record_arrivals": "arrivals.csv"},
    "models": {
        "digits": {"path": "builtin:digits", "scaling": {"min_workers": 1}, "warm_up": {"measure_s": 0}},
        "words": {"engine": "sim", "sim": {"task": "text", "t0_s": 0.02, "load_s": 0.0}, "scaling": {"min_workers": 1}},
        "slow": _SLOW,
        "echo": {"engine": "sim", "sim": {"task": "call", "load_s": 0.0}, "scaling": {"min_workers": 1}},
    },
}


def browser_path() -> str | None:
    """Return the first browser that is installed."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


# Not of the session: while Playwright is open, its event loop runs in this thread, and other files need their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser. Skips without Playwright or a browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: scripts/browser")
    found = browser_path()
    if found is None:
        pytest.skip(f"no browser is installed ({', '.join(_BROWSERS)}): scripts/browser")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def instance(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """A server with its controller: a model of each kind, ready. Not started where there is no browser."""
    del browser
    started = Instance(tmp_path_factory.mktemp("browser"), CONFIG)
    try:
        started.until(started.is_ready, "a ready server")
        yield started
    finally:
        started.end()


@pytest.fixture
def tab(browser: Any, instance: Instance) -> Iterator[Any]:
    """A page of the server. The test fails if it reports an error, or asks another host for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=instance.url)
    page, faults = context.new_page(), []

    def on_request(route: Any) -> None:
        if urlsplit(route.request.url).netloc != urlsplit(instance.url).netloc:
            faults.append(f"a request to {route.request.url}")
            route.abort()
        else:
            route.continue_()

    page.route("**/*", on_request)
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    yield page
    context.close()
    assert faults == []
