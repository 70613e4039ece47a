"""The control plane with its real parts; no process is started, and no balancer answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from configs.load import load
from configs.settings import Settings
from controller.autoscaler.autoscaler import Autoscaler, TickResult
from controller.autoscaler.model_state import ModelState
from controller.autoscaler.overrides import Override, Overrides
from controller.balancer_client import BalancerHttpClient
from controller.launchers.local import LocalLauncher
from controller.launchers.machines import MachinesLauncher
from controller.planning.machines import Machine
from controller.planning.plan import Plan
from controller.runtime.control_plane import ControlPlaneAgent
from controller.runtime.inventory import build_host_devices, build_models
from controller.runtime.state_file import StateFile
from controller.types import Device
from scripts.harness.processes import wait_until


def read(folder: Path, share_after_s: float) -> Settings:
    file = folder / "muster.yaml"
    tree = {
        "data_dir": str(folder / "data"),
        "workers": {"listen": "tcp://127.0.0.1:5555", "share_after_s": share_after_s},
        "devices": {"simulated": [{"memory": "24GiB"}]},
        "models": {"m": {"engine": "sim", "scaling": {"min_workers": 2}}},
    }
    file.write_text(yaml.safe_dump(tree))
    return load(file)


def make_control_plane(settings: Settings, models: Mapping[str, ModelState], folder: Path) -> ControlPlaneAgent:
    """Return it with the state in the folder. It reads settings with which machines have an hour to join."""
    return ControlPlaneAgent(
        settings,
        Autoscaler(models),
        BalancerHttpClient("http://127.0.0.1:9", "token"),
        MachinesLauncher(LocalLauncher(settings), settings),
        StateFile(folder),
        read_settings=lambda: read(folder, 3600.0),
        build_models=lambda fresh, machines, awaits: build_models(
            fresh, build_host_devices(fresh, [], 1, machines, awaits_machines=awaits)
        ),
        device_names={},
    )


def test_devices_are_shared_after_machines_had_time_to_join(tmp_path: Path) -> None:
    settings = read(tmp_path, 0.2)
    models = build_models(settings, build_host_devices(settings, [], 1, awaits_machines=True))
    assert models["m"].slots == ["sim:0"]
    control_plane = make_control_plane(settings, models, tmp_path)

    def shares() -> bool:
        control_plane.update_machines([])
        return models["m"].slots == ["sim:0", "sim:0"]

    wait_until(shares, "a second place on the only device")
    control_plane.reload()
    assert models["m"].slots == ["sim:0"]


def test_machine_that_is_away_changes_no_devices(tmp_path: Path) -> None:
    settings = read(tmp_path, 0.0)
    models = build_models(settings, build_host_devices(settings, [], 1))
    control_plane = make_control_plane(settings, models, tmp_path)
    control_plane.update_machines([])
    before = models["m"].slots
    control_plane.update_machines([Machine("box", (), frozenset(), None, refused_reason="away")])
    assert models["m"].slots is before, "they are not made again"
    control_plane.update_machines([Machine("box", (Device("box/sim:0", 24 << 30),), frozenset({"m"}), 1.0)])
    assert models["m"].slots == ["sim:0", "box/sim:0"]


def test_override_ends_at_its_time(tmp_path: Path) -> None:
    settings = read(tmp_path, 0.0)
    models = build_models(settings, build_host_devices(settings, [], 1))
    begun: list[ControlPlaneAgent] = []

    def has_begun() -> bool:
        StateFile(tmp_path).save(Overrides({"m": Override(2, time.time() + 0.5)}), 0, b"")
        begun.append(make_control_plane(settings, models, tmp_path))
        return models["m"].override is not None

    def has_ended() -> bool:
        asyncio.run(begun[-1].report(TickResult(Plan([], {}), []), time.monotonic(), is_connected=False))
        return models["m"].override is None

    wait_until(has_begun, "the override, which may end before the control plane has read it")
    wait_until(has_ended, "the end of the override")
    saved = StateFile(tmp_path).load()
    assert saved is not None
    assert saved.overrides == Overrides(), "the next controller does not begin it again"
