"""Builds the device pool and the models from the configuration and the machine's devices. Pure."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from configs.devices import kind_of
from configs.model_settings import Model as ModelSettings
from configs.scaling import Scaling
from configs.settings import Settings
from controller.autoscaler.model_state import ModelState
from controller.planning.device_pool import DevicePool
from controller.planning.machines import Machine
from controller.planning.placement import DeviceSlots, PlacementRequest, in_gib
from controller.policies import Policy, PolicyImportError, find
from controller.types import Decision, Device, WorkerLimits
from host.types import SetupError

#: `max_workers: auto` of a simulated model if no simulated devices are configured.
_SIM_WORKERS = 4
#: `workers.max_starting: auto` on a small machine.
_MIN_STARTING = 8
#: Private memory of a process that has imported torch, diffusers and transformers, as measured on a CPU.
_LIBRARY_BYTES = 350 << 20


@dataclass(frozen=True, slots=True)
class HostDevices:
    """The devices of the controller's machine, and the other machines.

    Those are GPUs, or CPU slots if there are none, and simulated GPUs.
    """

    gpus: Sequence[Device]
    cores: int
    simulated: Sequence[Device] = ()
    machines: Sequence[Machine] = ()
    #: Whether this machine has none, because all workers run on others.
    remote_only: bool = False
    #: Whether workers without a device of their own wait for more machines instead of sharing one.
    awaits_machines: bool = False

    @property
    def devices(self) -> Sequence[Device]:
        """The devices that may have memory of their own."""
        return [*self.gpus, *self.simulated, *(device for machine in self.machines for device in machine.devices)]

    def remote(self, model: str, kind: str) -> list[Device]:
        """Return the devices of this kind on the other machines, as far as the model can run there."""
        return [
            device
            for machine in self.machines
            if model not in machine.unusable_models
            for device in machine.devices
            if kind_of(device.name) == kind
        ]


def build_host_devices(
    settings: Settings,
    gpus: Sequence[Device],
    cores: int,
    machines: Sequence[Machine] = (),
    *,
    awaits_machines: bool = False,
) -> HostDevices:
    if settings.launcher == "ray":
        return HostDevices([], 0, (), machines, remote_only=True)
    sizes = [group.memory for group in settings.devices.simulated for _ in range(group.count)]
    slots = cores if settings.devices.cpu_slots == "auto" else settings.devices.cpu_slots
    simulated = [Device(f"sim:{number}", size) for number, size in enumerate(sizes)]
    return HostDevices(gpus, slots, simulated, machines, awaits_machines=awaits_machines)


def join_time_s(settings: Settings) -> float:
    """Return the time that machines have to join. Until then no worker needs to share a device."""
    workers = settings.workers
    return workers.share_after_s if settings.launcher == "local" and workers.listen is not None else 0.0


def build_pool(
    settings: Settings, machine: HostDevices, measured: Mapping[str, int], occupied: Collection[str] = ()
) -> DevicePool:
    """Return the pool. `measured` is the memory that workers needed, by `Model.weights`."""
    devices = settings.devices
    own = [*machine.gpus, *machine.simulated]
    return DevicePool(own, margin=devices.memory_margin, share=devices.share, measured=measured, occupied=occupied)


def build_models(settings: Settings, machine: HostDevices) -> dict[str, ModelState]:
    """Return every model with its limits and the devices of its workers. Raises `SetupError`."""
    real = [name for name, model in settings.models.items() if model.engine != "sim"]
    minimum = {name: 0 if machine.awaits_machines else settings.scaling(name).min_workers for name in settings.models}
    total_min = sum(minimum[name] for name in real)
    unbounded = _default_sim_devices(settings, machine)
    found = {}
    for name, model in settings.models.items():
        scaling = settings.scaling(name)
        slots = (
            _real_slots(name, machine, minimum[name], total_min)
            if name in real
            else _simulated_slots(name, machine, minimum[name], unbounded)
        )
        places = _places(settings, model, machine, slots)
        if name not in real and unbounded:
            places = _SIM_WORKERS + len(slots) - len(unbounded)
        first = scaling.min_workers if scaling.initial_workers is None else scaling.initial_workers
        found[name] = ModelState(
            scaling,
            _limits(settings, name, places),
            _policy(name, scaling),
            slots,
            Decision(first, f"{'min' if scaling.initial_workers is None else 'initial'}_workers is {first}"),
            gpu_memory=None if model.gpu_memory == "auto" else int(model.gpu_memory),
            weights=_weights(name, model),
        )
    return found


def _real_slots(model: str, machine: HostDevices, min_workers: int, total_min: int) -> Sequence[str]:
    """Return the GPUs of all machines. Without any GPU: the CPU slots of all machines."""
    gpus = [*machine.gpus, *machine.remote(model, "cuda")]
    if machine.remote_only:
        return [device.name for device in gpus or machine.remote(model, "cpu")]
    # If memory is counted, it decides which models share a GPU; the slots only bound workers of one model.
    is_counted = bool(gpus) and all(gpu.memory is not None for gpu in gpus)
    required = min_workers if is_counted else total_min
    slots = [device.name for device in machine.remote(model, "cpu")]
    if gpus or not slots:
        return device_slots([gpu.name for gpu in gpus], machine.cores, required)
    return device_slots([*device_slots([], machine.cores, 0), *slots], 0, required)


def _simulated_slots(model: str, machine: HostDevices, min_workers: int, unbounded: Sequence[str]) -> Sequence[str]:
    names = [device.name for device in [*machine.simulated, *machine.remote(model, "sim")]]
    if machine.remote_only:
        return names
    if unbounded:
        return [*unbounded, *names] if names else unbounded
    return device_slots(names, 0, min_workers)


def _policy(model: str, scaling: Scaling) -> Policy:
    try:
        return find(scaling.policy)
    except PolicyImportError as error:
        raise SetupError(f"models.{model}.scaling.policy: {error}") from None


def device_slots(gpus: Sequence[str], cores: int, min_workers: int) -> list[str]:
    """Return GPUs, or CPU slots if there are none, each once per worker that may share it.

    There is a slot for each of `min_workers`, if need be on a shared device.
    """
    names = [*gpus] or [f"cpu:{slot}" for slot in range(max(cores, min_workers))]
    return list(itertools.islice(itertools.cycle(names), max(len(names), min_workers)))


def _default_sim_devices(settings: Settings, machine: HostDevices) -> list[str]:
    """Return simulated devices if none are configured: one per possible worker, and one per model for an update."""
    if machine.simulated or machine.remote_only:
        return []
    bounds = [_limits(settings, name, _SIM_WORKERS) for name, model in settings.models.items() if model.engine == "sim"]
    return [f"sim:{number}" for number in range(sum(limits.max_workers + 1 for limits in bounds))]


def _places(settings: Settings, model: ModelSettings, machine: HostDevices, slots: Sequence[str]) -> int:
    """Return the number of workers of the model that fit on the devices."""
    if not settings.devices.share or model.gpu_memory == "auto":
        return len(slots)
    room = [device.memory for device in machine.devices if device.name in set(slots)]
    return max(sum((memory or 0) // model.gpu_memory for memory in room), len(slots))


def _limits(settings: Settings, model: str, places: int) -> WorkerLimits:
    scaling, workers = settings.scaling(model), settings.workers
    maximum = max(places, scaling.min_workers) if scaling.max_workers == "auto" else scaling.max_workers
    return WorkerLimits(
        scaling.min_workers, maximum, workers.start_timeout_s, workers.drain_timeout_s, workers.lost_after_s
    )


def _weights(name: str, model: ModelSettings) -> str:
    """Return the key of what its workers load, under which measured memory is kept."""
    if model.engine == "sim":
        return f"sim {name}"
    parts = [model.path, model.variant, model.controlnet, model.dtype, f"batch {model.max_batch_size}"]
    parts += [model.revision, model.base, model.vae.dtype if model.vae.dtype != "auto" else None]
    parts += [f"{part} {path}" for part, path in model.replaced_parts.items()]
    if model.compile != "off":
        parts.append(f"compile {model.compile}")
    if model.task == "text":
        parts += [
            model.engine,
            f"cache {model.text.kv_cache}",
            f"context {model.text.context_length}",
            str(model.python),
        ]
    if model.task == "call":
        parts += [model.engine, json.dumps(model.options, sort_keys=True), str(model.python)]
    return " ".join(str(part) for part in parts if part is not None)


def max_starting(settings: Settings, machine: HostDevices) -> int:
    """Return how many processes may start at once."""
    configured = settings.workers.max_starting
    return max(len(machine.gpus), machine.cores, _MIN_STARTING) if configured == "auto" else configured


def memory_shortage(workers: int, available_bytes: int) -> str:
    """Return a warning if so many workers do not fit into main memory, whatever they load; empty if they may."""
    needed = workers * _LIBRARY_BYTES
    if needed <= available_bytes:
        return ""
    return (
        f"min_workers require {workers} workers, whose libraries alone need {in_gib(needed)} of main memory; "
        f"{in_gib(available_bytes)} are available: the kernel will kill some. Lower min_workers"
    )


def oversized_models(models: Mapping[str, ModelState], machine: HostDevices) -> list[str]:
    """Return a sentence for each model whose worker fits on no device: its need, and what to change."""
    found = []
    for name, model in models.items():
        own = [device for device in machine.devices if device.name in set(model.slots) and device.memory is not None]
        largest = max(own, key=lambda device: device.memory or 0, default=None)
        need = model.gpu_memory
        if largest is not None and need is not None and need > (largest.memory or 0):
            found.append(
                f"models.{name}.gpu_memory is {in_gib(need)}, but the largest GPU ({largest.name}) has "
                f"{in_gib(largest.memory or 0)}: set what a worker needs (a smaller dtype or max_batch_size needs "
                "less), or remove the model"
            )
    return found


def unplaced_models(models: Mapping[str, ModelState], machine: HostDevices, *, share: bool) -> list[str]:
    """Return the models whose `min_workers` do not all fit, among those with a declared memory."""
    slots = DeviceSlots({device.name: device for device in machine.devices}, tight=True)
    found = []
    for name, model in sorted(models.items(), key=lambda pair: -(pair[1].gpu_memory or 0)):
        if model.gpu_memory is not None:
            request = PlacementRequest(name, model.gpu_memory, Counter(model.slots), share)
            placed = [slots.take(request) for _ in range(model.limits.min_workers)]
            if None in placed:
                found.append(f"{placed.count(None)} of {len(placed)} of {name}")
    return found


def starved_models(models: Mapping[str, ModelState], machine: HostDevices) -> list[str]:
    """Return the models with `min_workers` 0 that get no CPU slot, as the others' `min_workers` take them all."""
    if machine.gpus or machine.awaits_machines:  # a GPU may have room for several models
        return []
    required = sum(model.limits.min_workers for model in models.values())
    return [name for name, model in models.items() if model.limits.min_workers == 0 and required >= machine.cores]
