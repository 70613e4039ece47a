"""The control plane with its real parts; no process is started, and no balancer answers."""

from __future__ import annotations

from pathlib import Path

import yaml

from configs.load import load
from configs.settings import Settings
from controller.autoscaler.autoscaler import Autoscaler
from controller.balancer_client import BalancerHttpClient
from controller.launchers.local import LocalLauncher
from controller.launchers.machines import MachinesLauncher
from controller.runtime.control_plane import ControlPlaneAgent
from controller.runtime.inventory import build_host_devices, build_models
from controller.runtime.state_file import StateFile
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


def test_devices_are_shared_after_machines_had_time_to_join(tmp_path: Path) -> None:
    settings = read(tmp_path, 0.2)
    models = build_models(settings, build_host_devices(settings, [], 1, awaits_machines=True))
    assert models["m"].slots == ["sim:0"]
    control_plane = ControlPlaneAgent(
        settings,
        Autoscaler(models),
        BalancerHttpClient("http://127.0.0.1:9", "token"),
        MachinesLauncher(LocalLauncher(settings), settings),
        StateFile(tmp_path),
        read_settings=lambda: read(tmp_path, 3600.0),
        build_models=lambda fresh, machines, awaits: build_models(
            fresh, build_host_devices(fresh, [], 1, machines, awaits_machines=awaits)
        ),
        device_names={},
    )

    def shares() -> bool:
        control_plane.update_machines([])
        return models["m"].slots == ["sim:0", "sim:0"]

    wait_until(shares, "a second place on the only device")
    control_plane.reload()
    assert models["m"].slots == ["sim:0"]
