"""State that survives a restart of the controller: overrides, the decision count, the autoscaler's state."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from configs.files import atomic_write
from controller.autoscaler.overrides import Overrides

log = logging.getLogger("controller")

#: Decision numbers that a periodic save reserves, so that a controller after a crash reuses no unsaved number.
_RESERVED_DECISIONS = 1000


class _Header(msgspec.Struct, frozen=True):
    overrides: Overrides
    #: No decision has a higher number.
    last_decision: int
    #: Unix seconds.
    saved_at: float


class SavedState(NamedTuple):
    """The state of an earlier controller. `memory` is for `Autoscaler.restore`, and `age_s` old."""

    overrides: Overrides
    last_decision: int
    memory: bytes
    age_s: float


class StateFile:
    """Two files in `run/`: `overrides.json` and `autoscaler.json`."""

    def __init__(self, folder: Path) -> None:
        self._header = folder / "overrides.json"
        self._memory = folder / "autoscaler.json"

    def load(self) -> SavedState | None:
        """Return the saved state; None if there is none or it cannot be read."""
        try:
            header = msgspec.json.decode(self._header.read_bytes(), type=_Header)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            lost = "overrides, a pause and what the policies have learnt are lost"
            log.warning("%s cannot be read, and %s: %s", self._header, lost, error)
            return None
        age_s = max(time.time() - header.saved_at, 0.0)
        return SavedState(header.overrides, header.last_decision, self._load_memory(), age_s)

    def _load_memory(self) -> bytes:
        """Return what the policies have learnt; empty if it cannot be read."""
        try:
            memory = self._memory.read_bytes()
            msgspec.json.decode(memory, type=dict[str, msgspec.Raw])
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read, and what the policies have learnt is lost: %s", self._memory, error)
            return b""
        return memory

    def save(self, overrides: Overrides, last_decision: int, memory: bytes, *, final: bool = False) -> None:
        """Write the state. `final`: no further decision follows."""
        reserved = 0 if final else _RESERVED_DECISIONS
        header = _Header(overrides, last_decision + reserved, time.time())
        try:
            atomic_write(self._memory, memory)
            atomic_write(self._header, msgspec.json.encode(header))
        except OSError as error:
            log.warning("overrides and decisions cannot be saved for a restart: %s", error)
