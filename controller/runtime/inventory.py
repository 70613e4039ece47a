"""What the configuration makes of this machine: its pool of devices, and which of them each model may have. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.scaling import Scaling
from configs.settings import Model as ModelSettings
from configs.settings import Settings
from controller.autoscaler.autoscaler import Model
from controller.planning.device_pool import Pool
from controller.planning.placement import Berth, Rooms, in_gib
from controller.policies import CannotImport, Policy, find
from controller.types import Decision, Device, Limits

#: What `max_workers: auto` means for a simulated model where there is no end of simulated devices.
_SIM_WORKERS = 4


class SetupError(Exception):
    """Cannot start as asked; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to work on: GPUs if there are any, else CPU slots, and simulated GPUs."""

    gpus: Sequence[Device]
    cores: int
    simulated: Sequence[Device] = ()

    @property
    def devices(self) -> Sequence[Device]:
        """Those whose memory is counted, or may be."""
        return [*self.gpus, *self.simulated]


def build_machine(settings: Settings, gpus: Sequence[Device], cores: int) -> Machine:
    """The machine with the GPUs that were found, and the simulated ones of the configuration."""
    sizes = [group.memory for group in settings.devices.simulated for _ in range(group.count)]
    slots = cores if settings.devices.cpu_slots == "auto" else settings.devices.cpu_slots
    return Machine(gpus, slots, [Device(f"sim:{number}", size) for number, size in enumerate(sizes)])


def build_pool(settings: Settings, machine: Machine, load_measured_memory: Mapping[str, int]) -> Pool:
    """The devices that workers compete for. `measured`: what they were seen to need, by `Model.weights`."""
    devices = settings.devices
    return Pool(machine.devices, margin=devices.memory_margin, share=devices.share, measured=load_measured_memory)


def build_models(settings: Settings, machine: Machine) -> dict[str, Model]:
    """Every model with its bounds and the devices that its workers may have. Raises `SetupError`."""
    real = [name for name, model in settings.models.items() if model.engine != "sim"]
    least = sum(settings.scaling(name).min_workers for name in real)
    unbounded = _no_end_of_devices(settings, machine)
    found = {}
    for name, model in settings.models.items():
        scaling = settings.scaling(name)
        if name in real:
            counted = all(gpu.memory is not None for gpu in machine.gpus)
            # Where memory is counted it bounds who shares a GPU with whom; here it is only with its like.
            own = scaling.min_workers if machine.gpus and counted else least
            slots = device_slots([gpu.name for gpu in machine.gpus], machine.cores, own)
        else:
            names = [gpu.name for gpu in machine.simulated]
            slots = device_slots(names, 0, scaling.min_workers) if names else unbounded
        limits = _limits(settings, name, _SIM_WORKERS if slots is unbounded else _most(settings, model, machine, slots))
        first = scaling.min_workers if scaling.initial_workers is None else scaling.initial_workers
        found[name] = Model(
            scaling,
            limits,
            _policy(name, scaling),
            slots,
            Decision(first, f"{'min' if scaling.initial_workers is None else 'initial'}_workers is {first}"),
            gpu_memory=None if model.gpu_memory == "auto" else int(model.gpu_memory),
            weights=_weights(name, model),
        )
    return found


def _policy(model: str, scaling: Scaling) -> Policy:
    try:
        return find(scaling.policy)
    except CannotImport as error:
        raise SetupError(f"models.{model}.scaling.policy: {error}") from None


def device_slots(gpus: Sequence[str], cores: int, least: int) -> list[str]:
    """The devices of this machine, each as often as workers may share it: GPUs, or CPU slots where there is none.

    `least` is how many workers there are to be at least: what a user asks for gets a place, if need be beside another.
    """
    names = [*gpus] or [f"cpu:{slot}" for slot in range(max(cores, least))]
    return list(itertools.islice(itertools.cycle(names), max(len(names), least)))


def _no_end_of_devices(settings: Settings, machine: Machine) -> list[str]:
    """Simulated devices where none are configured: as many as all workers together may want, and their successors."""
    if machine.simulated:
        return []
    most = [_limits(settings, name, _SIM_WORKERS) for name, model in settings.models.items() if model.engine == "sim"]
    return [f"sim:{number}" for number in range(sum(limits.max_workers + 1 for limits in most))]


def _most(settings: Settings, model: ModelSettings, machine: Machine, slots: Sequence[str]) -> int:
    """Workers of the model that the devices have places for."""
    if not settings.devices.share or model.gpu_memory == "auto":
        return len(slots)
    room = [device.memory for device in machine.devices if device.name in set(slots)]
    return max(sum((memory or 0) // model.gpu_memory for memory in room), len(slots))


def _limits(settings: Settings, model: str, devices: int) -> Limits:
    """The model's bounds on a machine with so many places for it."""
    scaling, workers = settings.scaling(model), settings.workers
    most = max(devices, scaling.min_workers) if scaling.max_workers == "auto" else scaling.max_workers
    return Limits(scaling.min_workers, most, workers.start_timeout_s, workers.drain_timeout_s, workers.lost_after_s)


def _weights(name: str, model: ModelSettings) -> str:
    """What its workers load, in words."""
    if model.engine == "sim":
        return f"sim {name}"
    parts = [model.path, model.variant, model.controlnet, model.dtype, f"batch {model.max_batch_size}"]
    return " ".join(str(part) for part in parts if part is not None)


def oversized_models(models: Mapping[str, Model], machine: Machine) -> list[str]:
    """What to change about models that no device can hold, one sentence for each."""
    found = []
    for name, model in models.items():
        own = [device for device in machine.devices if device.name in set(model.slots) and device.memory is not None]
        largest = max(own, key=lambda device: device.memory or 0, default=None)
        need = model.gpu_memory
        if largest is not None and need is not None and need > (largest.memory or 0):
            found.append(
                f"models.{name}.gpu_memory is {in_gib(need)}, but the largest GPU ({largest.name}) has "
                f"{in_gib(largest.memory or 0)}: set what a worker needs (a smaller dtype or max_batch_size needs "
                "less), or take the model out"
            )
    return found


def unplaced_models(models: Mapping[str, Model], machine: Machine, *, share: bool) -> list[str]:
    """Models whose `min_workers` do not all find a place, as far as it is known what they need."""
    rooms = Rooms({device.name: device for device in machine.devices}, tight=True)
    found = []
    for name, model in sorted(models.items(), key=lambda pair: -(pair[1].gpu_memory or 0)):
        if model.gpu_memory is not None:
            berth = Berth(name, model.gpu_memory, Counter(model.slots), share)
            placed = [rooms.take(berth) for _ in range(model.limits.min_workers)]
            if None in placed:
                found.append(f"{placed.count(None)} of {len(placed)} of {name}")
    return found
