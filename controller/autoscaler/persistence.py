"""Serializes the autoscaler's state (margins, windows, estimates), so that it survives a restart. Pure.

Times are saved as ages, because a monotonic clock is valid in one process only. State of another policy or of an
incompatible version is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from controller.autoscaler.model_state import RecentStarts
from controller.policies import MEMORY_TYPES, bounds


class SavedModel(msgspec.Struct, frozen=True):
    """The saved state of one model. Times in `memory` are relative to the time of saving."""

    policy: str
    starts: RecentStarts
    memory: bounds.PolicyMemory
    #: The starts by machine.
    machine_starts: dict[str, RecentStarts] = {}


def pack(models: Mapping[str, SavedModel], now: float) -> bytes:
    """Return the state as JSON. `now` is on the clock of the times in it."""
    aged = {name: msgspec.structs.replace(model, memory=_shifted(model, -now)) for name, model in models.items()}
    return msgspec.json.encode(aged)


def unpack(saved: bytes, now: float, age_s: float) -> dict[str, SavedModel]:
    """Return the state that was saved `age_s` ago, by model, with times on the clock of `now`.

    Parts that cannot be decoded are left out.
    """
    try:
        raw = msgspec.json.decode(saved, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        return {}
    found = {}
    for name, part in raw.items():
        try:
            model = msgspec.json.decode(part, type=SavedModel)
            own = model.memory.own
            if own is not None:
                own = msgspec.convert(own, type=MEMORY_TYPES[model.policy]) if model.policy in MEMORY_TYPES else None
        except msgspec.MsgspecError:
            continue
        model = msgspec.structs.replace(model, memory=replace(model.memory, own=own))
        found[name] = msgspec.structs.replace(model, memory=_shifted(model, now - age_s))
    return found


def _shifted(model: SavedModel, seconds: float) -> bounds.PolicyMemory:
    known = model.policy in MEMORY_TYPES
    return (model.memory if known else replace(model.memory, own=None)).shifted(seconds)
