"""The server under test: one that is started for the test, or one that runs already."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from configs.paths import internal_token
from scripts.bench.experiments.step_curves import A100
from scripts.harness.instance import Instance
from scripts.loadtest_lib.plan import TargetModel

_TIMEOUT_S = 30.0
#: Steps of an image are drawn between these shares of the model's default.
_STEPS_FROM, _STEPS_TO = 0.5, 1.5


class TargetError(Exception):
    """The server cannot be tested; the text is the reason."""


@dataclass(frozen=True)
class Target:
    """A server, and what the test may read of it."""

    url: str
    #: For requests, and for `/internal`; empty without a key.
    headers: Mapping[str, str]
    admin_headers: Mapping[str, str]
    #: The balancer's process, if it runs here; None otherwise.
    pid: int | None = None
    started_here: bool = False

    def models(self) -> tuple[TargetModel, ...]:
        """Return what the server serves. Raises `TargetError`."""
        try:
            answer = httpx.get(f"{self.url}/v1/models", headers=dict(self.headers), timeout=_TIMEOUT_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TargetError(f"{self.url} does not list its models: {error or type(error).__name__}") from None
        return usable_models(self.url, answer.status_code, answer.content)


def usable_models(url: str, status: int, content: bytes) -> tuple[TargetModel, ...]:
    """Return the models of an answer that the test can use. Raises `TargetError` if there are none."""
    if status == httpx.codes.UNAUTHORIZED:
        raise TargetError(f"{url} needs an API key: --key-file FILE")
    try:
        found = tuple(model for entry in json.loads(content)["data"] if (model := _model(entry)) is not None)
    except (ValueError, KeyError, TypeError):
        raise TargetError(f"{url} does not list its models: status {status}; is it a Muster server?") from None
    if not found:
        raise TargetError(f"{url} serves no model for images or texts")
    return found


def _model(entry: Mapping[str, Any]) -> TargetModel | None:
    """Return a model of `/v1/models` that the test can use."""
    if entry.get("task") == "text":
        return TargetModel(entry["id"], "text")
    if entry.get("task") != "image":
        return None
    defaults, limits = entry["defaults"], entry["limits"]
    steps = int(defaults["steps"])
    bounds = max(round(steps * _STEPS_FROM), 1), min(max(round(steps * _STEPS_TO), 1), int(limits["max_steps"]))
    return TargetModel(entry["id"], "image", defaults["size"], *bounds, edits="image" in entry.get("modes", []))


def running_target(url: str, key_file: Path | None, admin_key_file: Path | None) -> Target:
    """Return a server that runs already. Raises `TargetError` if a key file cannot be read."""
    key, admin_key = _first_key(key_file), _first_key(admin_key_file or key_file)
    return Target(url.rstrip("/"), _bearer(key), _bearer(admin_key))


def _first_key(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        keys = file.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"the key file {file} cannot be read: {error}") from None
    if not keys:
        raise TargetError(f"the key file {file} has no key; it needs one in each line")
    return keys[0]


def _bearer(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


@contextlib.contextmanager
def started_target(config: Mapping[str, Any]) -> Iterator[Target]:
    """Start a server on loopback, and end it. Raises `TargetError` if it is not ready in time."""
    with tempfile.TemporaryDirectory(prefix="muster-loadtest-") as place:
        instance = Instance(Path(place) / "data", {"workers": {}} | dict(config), threads=None)
        try:
            try:
                instance.until(instance.is_ready, "a ready server")
            except AssertionError as error:
                raise TargetError(f"the server did not start: {error}") from None
            headers = _bearer(internal_token(instance.folder))
            pid = instance.records()["loadbalancer"].pid
            yield Target(instance.url, {}, headers, pid, started_here=True)
        finally:
            instance.end()


def read_config(file: Path) -> dict[str, Any]:
    """Return a configuration file. Raises `TargetError`."""
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TargetError(f"{file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise TargetError(f"{file} is not a configuration")
    return config


def simulated_config(workers: int) -> dict[str, Any]:
    """Return a server of simulated accelerators: images at the published times of an A100, and a language model.

    Images have 64x64 pixels, so that their bytes do not load the machine. Their steps take the time of 512x512.
    """
    image = {
        "engine": "sim",
        "max_batch_size": 12,
        "defaults": {"size": "64x64", "steps": 30, "guidance_scale": 7.5, "scheduler": "ddim"},
        "limits": {"max_steps": 200, "min_side": 32},
        "sim": A100.sim() | {"asynchronous": True, "load_s": 2.0},
        "warm_up": {"measure_s": 5},
        "scaling": {"min_workers": max(workers // 4, 1), "max_workers": workers},
    }
    words = {
        "engine": "sim",
        "max_batch_size": 64,
        "sim": {"task": "text", "t0_s": 0.02, "t1_s": 0.0005, "load_s": 0.0},
        "scaling": {"min_workers": 1, "max_workers": 1},
    }
    # Jobs that are kept for a day would count as memory that grows.
    return {"models": {"image": image, "words": words}, "jobs": {"keep_s": 60}}
