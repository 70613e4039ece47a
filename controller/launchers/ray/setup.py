"""Makes the launcher for a Ray cluster from the settings, and waits for the first connection."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from configs.files import durable_create, read_regular_file
from configs.paths import log_dir, private_dir, run_dir
from configs.settings import Settings
from configs.worker_packages import link_packages
from controller.launchers.ray.gateway_process import GatewayProcess
from controller.launchers.ray.launcher import RayLauncher
from host.types import SetupError
from wire.curve import WorkerName

#: The first connection, with the start of an interpreter.
_JOINED_WITHIN_S = 60.0
_POLL_S = 0.05
#: What the gateway imports of this program. Besides, it needs msgspec.
_GATEWAY_PACKAGES = ("configs", "controller", "host", "wire")


def check_settings(settings: Settings) -> None:
    """Raises `SetupError` if workers of these settings cannot run on a Ray cluster."""
    if settings.workers.listen is None:
        raise SetupError(
            "launcher is ray, but workers.listen is not set: give tcp://ADDRESS:PORT, an address of this machine that "
            "the nodes of the cluster reach"
        )
    standby = [name for name in settings.models if settings.scaling(name).standby]
    if standby:
        raise SetupError(
            f"models.{standby[0]}.scaling.standby is {settings.scaling(standby[0]).standby}, but there are no standby "
            "workers on a Ray cluster, because an actor cannot be given a GPU later: set it to 0"
        )
    for name in settings.models:
        _check_name(name)


def _check_name(model: str) -> None:
    try:
        msgspec.convert(f"{model.replace('/', '-')}-000000", WorkerName)
    except msgspec.ValidationError:
        raise SetupError(f"models.{model}: on a Ray cluster a model's name has at most 56 characters") from None


def ray_launcher(settings: Settings, environment: Mapping[str, str]) -> RayLauncher:
    """Return the launcher; the first `poll` starts its gateway, with this environment. Raises `OSError`."""
    own = settings.ray
    python = str(own.python or sys.executable)
    command = [python, "-m", "controller.launchers.ray.gateway", "--address", own.address]
    command += ["--namespace", namespace(settings.data_dir)]
    command += ["--python", own.worker_python or "", "--environment", msgspec.json.encode(own.environment).decode()]
    source = Path(__file__).parents[3]
    if own.python is not None:
        source = link_packages(source, run_dir(settings.data_dir) / "ray" / "python", _GATEWAY_PACKAGES)
    path = os.pathsep.join(filter(None, [str(source), environment.get("PYTHONPATH")]))
    changed = {**environment, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    if _has_token(environment):
        changed.setdefault("RAY_AUTH_MODE", "token")
    return RayLauncher(settings, GatewayProcess(command, changed, log_dir(settings.data_dir) / "ray-gateway.log"))


def _has_token(environment: Mapping[str, str]) -> bool:
    """Return whether Ray finds a token in its variables, or in its own file."""
    if "RAY_AUTH_TOKEN" in environment or "RAY_AUTH_TOKEN_PATH" in environment:
        return True
    return Path("~/.ray/auth_token").expanduser().is_file()


def namespace(data_dir: Path) -> str:
    """Return the name of this data directory in the cluster; it is made once. Raises `OSError`."""
    path = private_dir(run_dir(data_dir) / "ray") / "namespace"
    durable_create(path, f"muster-{secrets.token_hex(8)}".encode("ascii"))
    return read_regular_file(path).decode("ascii")


async def until_joined(launcher: RayLauncher) -> None:
    """Wait for the cluster. Raises `SetupError` if it must not be used or does not answer.

    If there are workers of an earlier controller, they are served also while the cluster does not answer.
    """
    give_up_at = time.monotonic() + _JOINED_WITHIN_S
    while not launcher.has_nodes:
        launcher.poll()
        if launcher.failure is not None:
            if launcher.failure.refused or not launcher.has_workers:
                raise SetupError(launcher.failure.reason)
            return
        if time.monotonic() > give_up_at:
            raise SetupError("the Ray cluster has not answered in time; logs/ray-gateway.log may say why")
        await asyncio.sleep(_POLL_S)
