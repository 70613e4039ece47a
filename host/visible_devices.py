"""Parses `CUDA_VISIBLE_DEVICES` as CUDA does. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from host.types import SetupError

VARIABLE = "CUDA_VISIBLE_DEVICES"
#: Values that hide all GPUs; schedulers set the last ones.
_NONE = frozenset({"", "-1", "none", "void", "nodevfiles"})
_CPU = "to serve on the CPU, set devices.use: cpu (MUSTER_DEVICES__USE=cpu)"


class GpuId(NamedTuple):
    """The driver's number of a GPU, and its UUID (`GPU-...`)."""

    number: int
    uuid: str


def hides_all(allowed: str | None) -> bool:
    """Return whether the variable says that no GPU is to be used. None: it is not set."""
    return allowed is not None and allowed.split(",")[0].strip().lower() in _NONE


def visible_gpus(present: Sequence[GpuId], allowed: str | None) -> list[int]:
    """Return the numbers of the GPUs that the variable allows, in the driver's order.

    Raises `SetupError` if it names a device that is not present or cannot be used. There is no fallback to the CPU.
    """
    if allowed is None:
        return [gpu.number for gpu in present]
    if hides_all(allowed):
        return []
    found = set()
    for name in (part.strip() for part in allowed.split(",")):
        if name.lower() in _NONE:  # CUDA ignores the rest
            break
        found.add(_find(name, present))
    return sorted(found)


def _find(name: str, present: Sequence[GpuId]) -> int:
    """Return the GPU that a number or the beginning of a UUID names. Raises `SetupError`."""
    if name.upper().startswith("MIG"):
        raise SetupError(f"{VARIABLE} names {name}; parts of a GPU (MIG) cannot be used: name a whole GPU, or, {_CPU}")
    if not present:
        raise SetupError(f"{VARIABLE} names {name}, but no NVIDIA GPU or driver is found here; {_CPU}")
    if name.isdecimal():
        matches = [gpu.number for gpu in present if gpu.number == int(name)]
    else:
        matches = [gpu.number for gpu in present if gpu.uuid.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(f"{gpu.number} ({gpu.uuid})" for gpu in present)
    problem = "matches several GPUs" if matches else "is no GPU of this machine"
    raise SetupError(f"{VARIABLE} names {name}, which {problem}; its GPUs: {listed}")
