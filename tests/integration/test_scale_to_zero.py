"""Scaling from zero workers and back, with a real controller, balancer and simulated workers."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.harness.balancer import running, sim
from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S, wait_until
from wire.inputs import ImageInputs
from worker.engines.sim import expected_image

BODY = {"prompt": "a seven", "seed": 7}
PICTURE = expected_image(ImageInputs("a seven", 64, 64, 8, 3.0, 7, "ddim"))
#: Longer than any test: every decision must come from a trigger other than the tick.
NEVER_S = 36_000


@contextlib.contextmanager
def instance_of(folder: Path, **model: Any) -> Iterator[Instance]:
    instance = Instance(folder, {"models": {"m": sim(**model)}})
    try:
        yield instance
    finally:
        instance.end()


def predict(instance: Instance) -> bytes:
    answered = httpx.post(f"{instance.url}/predict", json=BODY, timeout=PATIENCE_S)
    assert answered.status_code == 200, answered.text
    return base64.b64decode(answered.json()["image"])


def test_first_request_starts_worker_and_idle_time_stops_it(tmp_path: Path) -> None:
    scaling = {"min_workers": 0, "max_workers": 2, "interval_s": 0.5, "scale_to_zero": {"idle_s": 2}}
    with instance_of(tmp_path, scaling=scaling) as instance:
        instance.until(lambda: "Muster is ready at" in instance.output(), "readiness without workers")
        assert instance.workers() == []
        instance.until(lambda: httpx.get(f"{instance.url}/readyz", timeout=PATIENCE_S).status_code == 200, "readiness")
        assert predict(instance) == PICTURE
        instance.until_workers(0)
        wait_until(lambda: len(instance.children()) == 1, "only the balancer")
        assert predict(instance) == PICTURE, "the second start"
        instance.until_workers(0)
        assert "crash" not in instance.output()


def test_first_request_does_not_wait_for_tick(tmp_path: Path) -> None:
    with instance_of(tmp_path, scaling={"min_workers": 0, "interval_s": NEVER_S}) as instance:
        instance.until(lambda: "Muster is ready at" in instance.output(), "readiness")
        assert predict(instance) == PICTURE


@pytest.mark.parametrize("policy", ["ongoing_requests", "slo_work"])
def test_every_policy_scales_from_zero(tmp_path: Path, policy: str) -> None:
    with instance_of(tmp_path, scaling={"policy": policy, "min_workers": 0, "interval_s": NEVER_S}) as instance:
        assert instance.workers() == []
        instance.until(lambda: "Muster is ready at" in instance.output(), "readiness")
        assert predict(instance) == PICTURE


def test_proxied_request_starts_worker(tmp_path: Path) -> None:
    """The other server takes a minute. A local worker is ready long before, and serves the next request."""
    slow = sim(t0_s=0.1, defaults={"size": "64x64", "steps": 600})
    scaling = {"min_workers": 0, "interval_s": NEVER_S}
    with running(tmp_path / "far", {"m": slow}) as far:
        proxy = {"url": f"{far.base_url}/v1"}
        with instance_of(tmp_path / "near", scaling=scaling, cold_start_proxy=proxy) as instance:
            instance.until(lambda: "Muster is ready at" in instance.output(), "readiness")
            url = f"{instance.url}/v1/images/generations"
            with httpx.stream("POST", url, json=BODY | {"stream": True}, timeout=PATIENCE_S) as answered:
                assert answered.headers["x-muster-proxied"] == "true"
                instance.until_workers(1)
            local = httpx.post(url, json=BODY, timeout=PATIENCE_S)
    assert "x-muster-proxied" not in local.headers
    assert base64.b64decode(local.json()["data"][0]["b64_json"]) == PICTURE
