"""What the page costs: the balancer's CPU time with many open pages, and the time to its first paint.

    python -m scripts.bench.serving.page --workers 64 --queued 10000 --json results.json

A server of simulated workers has thousands of requests in its queue. Then pages connect to its live data, and read it.
With a browser (`scripts/browser`) the first paint and the bytes of the page are measured as well. The simulated engine
makes no images here: its steps take a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import shutil
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from scripts.bench.serving.idle import cpu_s
from scripts.harness.balancer import sim
from scripts.harness.instance import Instance
from scripts.harness.load import machine

_PER_REQUEST = 100
_SETTLE_S = 3.0
_BROWSERS = ("chromium-headless-shell", "chromium")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.serving.page", description=__doc__)
    parser.add_argument("--workers", type=int, default=64, help="simulated workers (default 64)")
    parser.add_argument("--queued", type=int, default=10_000, help="requests in the queue (default 10000)")
    parser.add_argument("--pages", type=int, nargs="+", default=[0, 1, 100], help="open pages (default 0 1 100)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement (default 20)")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    console = Console()
    instance = Instance(Path(tempfile.mkdtemp()), _config(args.workers, args.queued), threads=None)
    try:
        instance.until_workers(args.workers)
        _fill(instance.url, args.queued)
        results = [_measure(instance, pages, args.seconds) for pages in args.pages]
        paint = _first_paint(instance.url)
    finally:
        instance.end()
    table = Table(title=f"{args.workers} workers, {args.queued} queued; simulated engine")
    for name in ("pages", "balancer, cores", "per page, % of a core", "bytes per page and second"):
        table.add_column(name, justify="right")
    for row in results:
        cells = (row["balancer_cores"], row["percent_of_core_per_page"], row["bytes_per_page_s"])
        table.add_row(str(row["pages"]), *(f"{each:.4g}" for each in cells))
    console.print(table)
    console.print(f"first paint: {paint}")
    if args.json is not None:
        body = {"engine": "simulated", "machine": machine(), "workers": args.workers, "queued": args.queued}
        args.json.write_text(json.dumps(body | {"results": results, "first_paint": paint}, indent=1) + "\n")


def _config(workers: int, queued: int) -> dict[str, Any]:
    model = sim(t0_s=60.0, scaling={"min_workers": workers, "max_workers": workers}, warm_up={"measure_s": 0})
    return {
        "models": {"sim": model},
        "queue": {"max_tasks": 2 * queued + 1000},
        "server": {"max_n": _PER_REQUEST, "timeout_s": 3000, "max_timeout_s": 3000},
        "workers": {"stuck_min_s": 600, "start_timeout_s": 600},
    }


def _fill(url: str, queued: int) -> None:
    body = {"prompt": "a seven", "n": _PER_REQUEST}
    send = partial(httpx.post, f"{url}/v1/images/generations", json=body, timeout=3000)
    for _ in range(queued // _PER_REQUEST):
        threading.Thread(target=_ignore_errors, args=(send,), daemon=True).start()
    while httpx.get(f"{url}/ui/tasks", timeout=60).json()["total"] < queued // _PER_REQUEST * _PER_REQUEST:
        time.sleep(0.5)


def _ignore_errors(send: Any) -> None:
    try:
        send()
    except httpx.HTTPError:  # the server ends before the requests do
        return


def _measure(instance: Instance, pages: int, seconds: float) -> dict[str, Any]:
    """Return the balancer's CPU time with so many open pages."""
    [record] = [each for each in instance.records().values() if "loadbalancer" in each.id]
    balancer = psutil.Process(record.pid)
    return asyncio.run(_with_pages(instance.url, balancer, pages, seconds))


async def _with_pages(url: str, balancer: psutil.Process, pages: int, seconds: float) -> dict[str, Any]:
    received = [0] * pages
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        readers = [asyncio.create_task(_read(client, received, number)) for number in range(pages)]
        await asyncio.sleep(_SETTLE_S)
        before, started, bytes_before = cpu_s(balancer), time.monotonic(), sum(received)
        await asyncio.sleep(seconds)
        took, cores = time.monotonic() - started, cpu_s(balancer) - before
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    share = cores / took
    return {
        "pages": pages,
        "balancer_cores": share,
        "percent_of_core_per_page": 100 * share / max(pages, 1),
        "bytes_per_page_s": (sum(received) - bytes_before) / took / max(pages, 1),
    }


async def _read(client: httpx.AsyncClient, received: list[int], number: int) -> None:
    async with client.stream("GET", "/ui/events") as response:
        async for chunk in response.aiter_raw():
            received[number] += len(chunk)


def _first_paint(url: str) -> dict[str, float] | str:
    """Return the milliseconds to the first paint and the bytes that the browser has loaded."""
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    try:
        playwright: Any = importlib.import_module("playwright.sync_api")
    except ImportError:
        playwright = None
    if playwright is None or found is None:
        return "not measured: scripts/browser installs what is needed"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found)
        page = browser.new_page()
        page.goto(url)
        page.get_by_role("heading", level=2).wait_for(timeout=60_000)
        script = """() => ({
            first_paint_ms: performance.getEntriesByName('first-contentful-paint')[0].startTime,
            loaded_bytes: [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
                .reduce((sum, each) => sum + each.transferSize, 0),
        })"""
        measured: dict[str, float] = page.evaluate(script)
        browser.close()
    return measured


if __name__ == "__main__":
    main()
