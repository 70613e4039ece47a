"""Devices and limits of the models on a machine, and configurations that are rejected before the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import ConfigError, load
from configs.settings import Settings
from controller.planning.machines import Machine
from controller.runtime.inventory import (
    build_host_devices,
    build_models,
    build_pool,
    device_slots,
    join_time_s,
    max_starting,
    memory_shortage,
    oversized_models,
    starved_models,
    unplaced_models,
)
from controller.types import Device
from host.types import SetupError

GIB = 2**30


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    def make(models: dict[str, Any], **sections: Any) -> Settings:
        file = tmp_path / "muster.yaml"
        whole = {name: {"path": "builtin:digits"} | model for name, model in models.items()}
        file.write_text(yaml.safe_dump({"models": whole, **sections}))
        return load(file, {"data_dir": str(tmp_path)})

    return make


def gpus(*gib: int | None) -> list[Device]:
    return [Device(f"cuda:{n}", None if size is None else size * GIB) for n, size in enumerate(gib)]


@pytest.mark.parametrize(
    ("names", "cores", "min_workers", "slots"),
    [
        (["cuda:0", "cuda:1"], 16, 1, ["cuda:0", "cuda:1"]),
        (["cuda:2", "cuda:5"], 16, 2, ["cuda:2", "cuda:5"]),
        (["cuda:0"], 16, 2, ["cuda:0", "cuda:0"]),
        (["cuda:0", "cuda:1"], 16, 3, ["cuda:0", "cuda:1", "cuda:0"]),
        ([], 2, 1, ["cpu:0", "cpu:1"]),
        ([], 1, 2, ["cpu:0", "cpu:1"]),
    ],
)
def test_device_slots(names: list[str], cores: int, min_workers: int, slots: list[str]) -> None:
    assert device_slots(names, cores, min_workers) == slots


def test_gpus_are_shared_by_memory_or_by_slots(settings: Any) -> None:
    three = settings({"a": {}, "b": {}, "c": {}})
    counted = build_models(three, build_host_devices(three, gpus(80, 80), 8))
    assert [model.slots for model in counted.values()] == [["cuda:0", "cuda:1"]] * 3
    uncounted = build_models(three, build_host_devices(three, gpus(None, None), 8))
    assert [model.slots for model in uncounted.values()] == [["cuda:0", "cuda:1", "cuda:0"]] * 3
    assert [model.limits.max_workers for model in counted.values()] == [2] * 3


def test_simulated_devices_configured_or_default(
    settings: Any,
) -> None:
    models = {"a": {"engine": "sim"}, "b": {"engine": "sim", "scaling": {"max_workers": 3}}, "real": {}}
    free = settings(models)
    machine = build_host_devices(free, [], 2)
    models_found = build_models(free, machine)
    assert {name: len(model.slots) for name, model in models_found.items()} == {
        "a": 9,
        "b": 9,
        "real": 2,
    }
    bound = settings(models, devices={"simulated": [{"memory": "24GiB"}, {"memory": "80GiB", "count": 2}]})
    machine = build_host_devices(bound, [], 2)
    assert machine.simulated == [Device("sim:0", 24 * GIB), Device("sim:1", 80 * GIB), Device("sim:2", 80 * GIB)]
    found = build_models(bound, machine)
    assert found["a"].slots == found["b"].slots == ["sim:0", "sim:1", "sim:2"]
    assert found["a"].limits.max_workers == 3
    assert build_pool(bound, machine, {}).largest == Device("sim:1", 80 * GIB)


def test_auto_max_workers_with_sharing_is_what_fits(settings: Any) -> None:
    sections = {"devices": {"share": True, "simulated": [{"memory": "24GiB", "count": 2}]}}
    shared = settings({"a": {"engine": "sim", "gpu_memory": "10GiB"}, "b": {"engine": "sim"}}, **sections)
    found = build_models(shared, build_host_devices(shared, [], 1))
    assert {name: model.limits.max_workers for name, model in found.items()} == {"a": 4, "b": 2}


def test_oversized_model_is_rejected_with_advice(settings: Any) -> None:
    large = settings({"a": {"gpu_memory": "96GiB"}, "b": {"gpu_memory": "80GiB"}, "c": {}})
    machine = build_host_devices(large, gpus(24, 80), 8)
    [problem] = oversized_models(build_models(large, machine), machine)
    assert problem == (
        "models.a.gpu_memory is 96.0 GiB, but the largest GPU (cuda:1) has 80.0 GiB: set what a worker needs "
        "(a smaller dtype or max_batch_size needs less), or remove the model"
    )
    on_cpu = build_host_devices(large, [], 8)
    assert oversized_models(build_models(large, on_cpu), on_cpu) == []


@pytest.mark.parametrize(
    ("needs", "min_workers", "unplaced"),
    [
        ({"a": "20GiB", "b": "20GiB"}, 1, []),
        # The large one is placed first, so that the small ones share a device.
        ({"a": "12GiB", "b": "24GiB", "c": "12GiB"}, 1, []),
        ({"a": "20GiB", "b": "20GiB", "c": "20GiB"}, 1, ["1 of 1 of c"]),
        ({"a": "10GiB"}, 4, []),
        ({"a": "10GiB"}, 6, ["2 of 6 of a"]),
        ({"a": "auto", "b": "auto", "c": "auto"}, 1, []),
    ],
)
def test_min_workers_that_do_not_fit_are_listed(
    settings: Any, needs: dict[str, str], min_workers: int, unplaced: list[str]
) -> None:
    models = {name: {"gpu_memory": need, "scaling": {"min_workers": min_workers}} for name, need in needs.items()}
    made = settings(models)
    machine = build_host_devices(made, gpus(24, 24), 8)
    assert unplaced_models(build_models(made, machine), machine, share=False) == unplaced


@pytest.mark.parametrize(
    ("gpu_count", "cores", "starved"),
    [(0, 2, ["asleep"]), (0, 3, []), (2, 2, [])],
    ids=["no slot is left", "one is left", "GPUs"],
)
def test_models_without_a_cpu_slot(settings: Any, gpu_count: int, cores: int, starved: list[str]) -> None:
    made = settings({"a": {}, "b": {}, "asleep": {"scaling": {"min_workers": 0}}})
    machine = build_host_devices(made, gpus(*[24] * gpu_count), cores)
    assert starved_models(build_models(made, machine), machine) == starved


def test_weights_key_depends_on_what_worker_loads(settings: Any) -> None:
    def weights(**model: Any) -> str:
        made = settings({"m": model})
        return build_models(made, build_host_devices(made, [], 1))["m"].weights

    assert weights() == weights(scaling={"min_workers": 2}, gpu_memory="9.5GiB")
    assert len({weights(), weights(dtype="float16"), weights(path="other"), weights(max_batch_size=4)}) == 4
    engines = [(engine, options) for engine in ("a:B", "a:C") for options in ({}, {"n": 1})]
    changes: list[dict[str, Any]] = [
        {},
        {"unet": "/u"},
        {"vae": "/v"},
        {"vae": {"dtype": "float32"}},
        {"revision": "v1"},
        {"base": "/b"},
        {"compile": "graphs"},
    ]
    assert len({weights(**change) for change in changes}) == len(changes)
    own = {weights(engine=engine, path="/x", options=options) for engine, options in engines}
    assert len(own) == 4, "engines of users in one folder"


def test_policy_import_error_names_setting(settings: Any) -> None:
    made = settings({"m": {"scaling": {"policy": "no_such_package.policies:mine"}}})
    with pytest.raises(SetupError, match=r"models\.m\.scaling\.policy: .*no_such_package"):
        build_models(made, build_host_devices(made, [], 1))


@pytest.mark.parametrize(
    ("sections", "model", "message"),
    [
        ({}, {"gpu_memory": "lots"}, "models.m.gpu_memory = 'lots'"),
        ({}, {"gpu_memory": 0}, "must be above 0, such as 9.5GiB"),
        ({"devices": {"simulated": [{"count": 2}]}}, {}, "devices.simulated"),
        ({"devices": {"simulated": [{"memory": "24GiB", "count": 0}]}}, {}, "devices.simulated"),
        ({"devices": {"memory_margin": -0.1}}, {}, "devices.memory_margin = -0.1"),
    ],
)
def test_invalid_values_are_rejected(
    settings: Any, sections: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        settings({"m": model}, **sections)
    assert message in str(raised.value)


@pytest.mark.parametrize(("text", "size"), [("9.5GiB", 9.5 * GIB), ("24 GB", 24e9), (1024, 1024)])
def test_sizes(settings: Any, text: str | int, size: float) -> None:
    assert settings({"m": {"gpu_memory": text}}).models["m"].gpu_memory == size


@pytest.mark.parametrize(
    ("configured", "gpu_count", "cores", "expected"),
    [("auto", 0, 2, 8), ("auto", 0, 64, 64), ("auto", 16, 4, 16), (3, 16, 64, 3)],
)
def test_starts_at_once(settings: Any, configured: int | str, gpu_count: int, cores: int, expected: int) -> None:
    own = settings({"m": {}}, workers={"max_starting": configured})
    assert max_starting(own, build_host_devices(own, gpus(*[80] * gpu_count), cores)) == expected


def test_memory_for_the_libraries_of_all_workers() -> None:
    assert memory_shortage(50, 20 * GIB) == ""
    assert "50 workers, whose libraries alone need 17.1 GiB" in memory_shortage(50, 8 * GIB)
    assert "8.0 GiB are available" in memory_shortage(50, 8 * GIB)


def box(name: str, *devices: str, **changes: Any) -> Machine:
    return Machine(name, [Device(f"{name}/{device}", 24 * GIB) for device in devices], frozenset(), 0.0, **changes)


@pytest.mark.parametrize(
    ("local", "machines", "slots"),
    [
        ([24], [box("a", "cuda:0"), box("b", "cuda:0")], ["cuda:0", "a/cuda:0", "b/cuda:0"]),
        # GPUs of any machine come before CPU slots.
        ([], [box("a", "cuda:0")], ["a/cuda:0"]),
        ([24], [box("a", "cpu:0")], ["cuda:0"]),
        ([], [box("a", "cpu:0", "cpu:1")], ["cpu:0", "cpu:1", "a/cpu:0", "a/cpu:1"]),
        # A silent machine stays listed: it may return.
        ([24], [box("a", "cuda:0", silent=True)], ["cuda:0", "a/cuda:0"]),
        ([24], [box("a", "cuda:0", unusable_models={"m": "its interpreter is missing"})], ["cuda:0"]),
        ([24], [box("a", "sim:0")], ["cuda:0"]),
    ],
)
def test_devices_of_other_machines(settings: Any, local: list[int], machines: list[Machine], slots: list[str]) -> None:
    one = settings({"m": {}})
    [model] = build_models(one, build_host_devices(one, gpus(*local), 2, machines)).values()
    assert model.slots == slots
    assert model.limits.max_workers == len(slots)


@pytest.mark.parametrize(
    ("local", "machines", "simulated", "waiting", "shared"),
    [
        ([], [], False, ["cpu:0", "cpu:1"], ["cpu:0", "cpu:1", "cpu:2"]),
        ([24], [], False, ["cuda:0"], ["cuda:0"] * 3),
        ([24], [box("a", "cuda:0")], False, ["cuda:0", "a/cuda:0"], ["cuda:0", "a/cuda:0", "cuda:0"]),
        ([24], [box("a", "cuda:0", "cuda:1")], False, *[["cuda:0", "a/cuda:0", "a/cuda:1"]] * 2),
        ([], [], True, ["sim:0"], ["sim:0"] * 3),
    ],
)
def test_devices_are_shared_only_once_no_machine_is_awaited(
    settings: Any, local: list[int], machines: list[Machine], simulated: bool, waiting: list[str], shared: list[str]
) -> None:
    model = {"engine": "sim"} if simulated else {}
    one = settings(
        {"m": model | {"scaling": {"min_workers": 3}}},
        devices={"simulated": [{"memory": "24GiB"}]} if simulated else {},
    )
    found = []
    for awaits in (True, False):
        host = build_host_devices(one, gpus(*local), 2, machines, awaits_machines=awaits)
        [built] = build_models(one, host).values()
        found.append(built.slots)
        assert (built.limits.min_workers, built.limits.max_workers) == (3, 3)
    assert found == [waiting, shared]


@pytest.mark.parametrize(
    ("workers", "launcher", "expected"),
    [
        ({}, "local", 0.0),
        ({"listen": "tcp://127.0.0.1:5555"}, "local", 30.0),
        ({"listen": "tcp://127.0.0.1:5555", "share_after_s": 7}, "local", 7.0),
        ({"listen": "tcp://127.0.0.1:5555", "share_after_s": 7}, "ray", 0.0),
    ],
)
def test_machines_have_a_time_to_join(settings: Any, workers: dict[str, Any], launcher: str, expected: float) -> None:
    assert join_time_s(settings({"m": {}}, workers=workers, launcher=launcher)) == expected


def test_simulated_devices_of_other_machines(settings: Any) -> None:
    machines = [box("a", "sim:0", "sim:1")]
    free = settings({"m": {"engine": "sim"}})
    [model] = build_models(free, build_host_devices(free, [], 2, machines)).values()
    assert model.slots == [*(f"sim:{n}" for n in range(5)), "a/sim:0", "a/sim:1"]
    assert model.limits.max_workers == 6
    bound = settings({"m": {"engine": "sim"}}, devices={"simulated": [{"memory": "24GiB"}]})
    [model] = build_models(bound, build_host_devices(bound, [], 2, machines)).values()
    assert model.slots == ["sim:0", "a/sim:0", "a/sim:1"]
