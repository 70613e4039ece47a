"""Which devices are to be left alone because workers crash on them. Pure.

Three crashes in a row on one device say that it is bad only where they do not follow the model: one that crashed
there serves on another device, and crashed on no other. After a while the device is tried again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from controller.types import Replica, Stage

_CRASHES = 3
#: A crash so long after the last one is not of the same row.
_SAME_ROW_S = 1800.0
#: A worker that became ready after the last crash and has stayed so for this long shows that the device is well.
_WELL_AFTER_S = 60.0
_FIRST_REST_S = 300.0
_LONGEST_REST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """Crashes in a row on one device."""

    count: int
    models: frozenset[str]
    last_at: float
    #: Until when it is left alone, and how often it has been.
    until: float = 0.0
    rests: int = 0


class Troubles:
    """Crashes by device."""

    def __init__(self) -> None:
        self._of: dict[str, Trouble] = {}

    def __repr__(self) -> str:
        return f"Troubles({ {device: trouble.count for device, trouble in self._of.items()} })"

    def crashed(self, device: str, model: str, at: float) -> None:
        """A worker of the model has crashed on the device."""
        old = self._of.get(device)
        if old is None or at - max(old.last_at, old.until) > _SAME_ROW_S:
            old = Trouble(0, frozenset(), at)
        self._of[device] = replace(old, count=old.count + 1, models=old.models | {model}, last_at=at)

    def aside(self, replicas: Iterable[Replica], now: float) -> dict[str, str]:
        """The devices to leave alone, and why. `replicas` are all there are."""
        if not self._of:
            return {}
        ready = [(r.child.device, r.child.model, r.child.ready_at) for r in replicas if r.stage is Stage.READY]
        for device, _, since in ready:
            trouble = self._of.get(device)
            if trouble and since is not None and trouble.last_at < since <= now - _WELL_AFTER_S:
                del self._of[device]
        serving = {(device, model) for device, model, _ in ready}
        found = {}
        for device, trouble in list(self._of.items()):
            suspects = self._not_the_model(device, trouble)
            if trouble.until <= now < trouble.last_at + _SAME_ROW_S and trouble.count >= _CRASHES:
                if not any(place != device and model in suspects for place, model in serving):
                    continue
                rest_s = min(_FIRST_REST_S * 2.0**trouble.rests, _LONGEST_REST_S)
                # One more crash after the rest is enough.
                trouble = replace(trouble, count=_CRASHES - 1, until=now + rest_s, rests=trouble.rests + 1)
                self._of[device] = trouble
            if now < trouble.until and suspects:
                found[device] = f"{_CRASHES} crashes in a row; tried again in {trouble.until - now:.0f} s"
        return found

    def _not_the_model(self, device: str, trouble: Trouble) -> frozenset[str]:
        """Models that crashed on this device and on no other."""
        return trouble.models.difference(*(other.models for place, other in self._of.items() if place != device))
