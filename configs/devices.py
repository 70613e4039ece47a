"""Names of devices: `cuda:0` on the controller's machine, `gpu-box/cuda:0` on the machine `gpu-box`. Pure.

The name of a standby worker's device is a kind without a number: `cuda`, or `gpu-box/cuda`.
"""

from __future__ import annotations

import re

#: Longest name of a machine: that of a DNS label.
MAX_MACHINE_NAME = 63
MACHINE_NAME = rf"[A-Za-z0-9](?:[A-Za-z0-9._-]{{0,{MAX_MACHINE_NAME - 2}}}[A-Za-z0-9])?"
_MACHINE_NAME = re.compile(MACHINE_NAME, re.ASCII)
_KIND = re.compile(r"[a-z]{1,16}", re.ASCII)
_LOCAL_NAME = re.compile(r"[a-z]{1,16}:(?:0|[1-9][0-9]{0,5})", re.ASCII)


def machine_of(device: str) -> str:
    """Return the name of the device's machine; empty for the controller's machine."""
    return device.rpartition("/")[0]


def local_name(device: str) -> str:
    """Return the device's name on its own machine: `cuda:0`, or a kind such as `cuda`."""
    return device.rpartition("/")[2]


def kind_of(device: str) -> str:
    """Return the kind of the device: `cuda`, `cpu` or `sim`."""
    return local_name(device).partition(":")[0]


def on_machine(machine: str, device: str) -> str:
    """Return the full name of the machine's device, or of a kind of its devices. It reverses the functions above."""
    return f"{machine}/{device}" if machine else device


def is_machine_name(name: str) -> bool:
    """Return whether a machine may have this name: letters, digits and `.`, `_`, `-` between them."""
    return _MACHINE_NAME.fullmatch(name) is not None


def is_local_name(device: str) -> bool:
    """Return whether this is the name of a numbered device on its own machine, or of a kind."""
    return _LOCAL_NAME.fullmatch(device) is not None or _KIND.fullmatch(device) is not None


def is_device_name(device: str) -> bool:
    """Return whether this is the full name of a numbered device."""
    machine, slash, local = device.rpartition("/")
    return _LOCAL_NAME.fullmatch(local) is not None and (not slash or is_machine_name(machine))
