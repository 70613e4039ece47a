"""Names of devices with and without a machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.devices import (
    MACHINE_NAME,
    MAX_MACHINE_NAME,
    is_device_name,
    is_machine_name,
    kind_of,
    local_name,
    machine_of,
    on_machine,
)

MACHINES = st.from_regex(MACHINE_NAME, fullmatch=True) | st.just("")


@pytest.mark.parametrize(
    ("device", "machine", "local", "kind"),
    [
        ("cuda:0", "", "cuda:0", "cuda"),
        ("gpu-box/cuda:0", "gpu-box", "cuda:0", "cuda"),
        ("gpu.box_2/cpu:17", "gpu.box_2", "cpu:17", "cpu"),
        ("gpu-box/cuda", "gpu-box", "cuda", "cuda"),
        ("sim", "", "sim", "sim"),
    ],
)
def test_a_name_has_a_machine_and_a_local_part(device: str, machine: str, local: str, kind: str) -> None:
    assert (machine_of(device), local_name(device), kind_of(device)) == (machine, local, kind)
    assert on_machine(machine, local) == device


@given(MACHINES, st.sampled_from(["cuda", "cpu", "sim"]), st.integers(0, 999_999))
def test_parts_of_any_name_are_joined_again(machine: str, kind: str, number: int) -> None:
    device = on_machine(machine, f"{kind}:{number}")
    assert is_device_name(device)
    assert (machine_of(device), local_name(device), kind_of(device)) == (machine, f"{kind}:{number}", kind)


@pytest.mark.parametrize(
    "name", ["", "-box", "box-", ".", "a/b", "a b", "a:b", "ä", "box\n", "a" * (MAX_MACHINE_NAME + 1)]
)
def test_other_names_of_machines_are_invalid(name: str) -> None:
    assert not is_machine_name(name)
    assert not is_device_name(f"{name}/cuda:0")


@pytest.mark.parametrize(
    "device", ["", "cuda", "cuda:", "cuda:-1", "cuda:01", "CUDA:0", "cuda:0/", "cuda:0\n", "a/b/cuda:0"]
)
def test_other_names_of_devices_are_invalid(device: str) -> None:
    assert not is_device_name(device)
