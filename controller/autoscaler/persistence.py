"""What a controller hands to its successor: margins, windows and estimates, so that a restart forgets nothing. Pure.

Times are kept as ages, for no clock of one process means anything to another. What was saved under another policy, or
by another version, is no use and is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from controller.autoscaler.model_state import StartupTimes
from controller.policies import MEMORY_TYPES, bounds


class SavedModel(msgspec.Struct, frozen=True):
    """One model's part. Times in `memory` are relative to when it was saved."""

    policy: str
    starts: StartupTimes
    memory: bounds.PolicyMemory


def pack(kept: Mapping[str, SavedModel], now: float) -> bytes:
    """As JSON; `now` is the clock that the memories' times are on."""
    aged = {name: msgspec.structs.replace(one, memory=_shifted(one, -now)) for name, one in kept.items()}
    return msgspec.json.encode(aged)


def unpack(saved: bytes, now: float, age_s: float) -> dict[str, SavedModel]:
    """What was saved `age_s` ago, by model, with times on the clock of `now`. Leaves out what cannot be read."""
    try:
        raw = msgspec.json.decode(saved, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        return {}
    found = {}
    for name, part in raw.items():
        try:
            one = msgspec.json.decode(part, type=SavedModel)
            own = one.memory.own
            if own is not None:
                own = msgspec.convert(own, type=MEMORY_TYPES[one.policy]) if one.policy in MEMORY_TYPES else None
        except msgspec.MsgspecError:
            continue
        one = msgspec.structs.replace(one, memory=replace(one.memory, own=own))
        found[name] = msgspec.structs.replace(one, memory=_shifted(one, now - age_s))
    return found


def _shifted(one: SavedModel, seconds: float) -> bounds.PolicyMemory:
    known = one.policy in MEMORY_TYPES
    return (one.memory if known else replace(one.memory, own=None)).shifted(seconds)
