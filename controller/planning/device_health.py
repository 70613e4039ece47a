"""Quarantine of devices on which workers crash, or of machines. Pure.

Three crashes in a row on one device are evidence of a device fault only if the model is not the cause. That is so if a
model that crashed there serves on another device, and crashed on no other. After the quarantine the device is tried
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from controller.planning.crash_backoff import doubled_s
from controller.types import Replica, Stage

_CRASHES = 3
#: A crash this long after the last one starts a new row.
_SAME_ROW_S = 1800.0
#: A worker that became ready after the last crash and stayed so for this long proves the device healthy.
_WELL_AFTER_S = 60.0
_FIRST_QUARANTINE_S = 300.0
_MAX_QUARANTINE_S = 3600.0


@dataclass(frozen=True, slots=True)
class DeviceFailure:
    """Crashes in a row on one device."""

    count: int
    models: frozenset[str]
    last_at: float
    #: End of the quarantine, and the number of quarantines so far.
    until: float = 0.0
    quarantines: int = 0
    #: The devices of the crashes.
    devices: frozenset[str] = frozenset()


class DeviceHealth:
    """Crashes by device, or by another place of devices."""

    def __init__(self, place_of: Callable[[str], str] = str, min_devices: int = 1) -> None:
        """`place_of` returns the place that crashes on a device count for: the device itself, or its machine.

        A place is suspected after crashes on `min_devices` of its devices.
        """
        self._place_of = place_of
        self._min_devices = min_devices
        #: By place. Empty on a healthy machine.
        self.failures: dict[str, DeviceFailure] = {}

    def __repr__(self) -> str:
        return f"DeviceHealth({ {device: failure.count for device, failure in self.failures.items()} })"

    def record(self, device: str, model: str, at: float) -> None:
        """Count a crash of the model's worker on the device."""
        place = self._place_of(device)
        old = self.failures.get(place)
        if old is None or at - max(old.last_at, old.until) > _SAME_ROW_S:
            old = DeviceFailure(0, frozenset(), at)
        self.failures[place] = replace(
            old, count=old.count + 1, models=old.models | {model}, last_at=at, devices=old.devices | {device}
        )

    def update(self, replicas: Iterable[Replica], now: float) -> None:
        """Begin quarantines, and forget the failures of devices that proved healthy. `replicas` are all workers."""
        ready = [
            (self._place_of(r.process.device), r.process.model, r.process.ready_at)
            for r in replicas
            if r.stage is Stage.READY
        ]
        for device, _, since in ready:
            failure = self.failures.get(device)
            if failure and since is not None and failure.last_at < since <= now - _WELL_AFTER_S:
                del self.failures[device]
        serving = {(device, model) for device, model, _ in ready}
        for device, failure in list(self.failures.items()):
            if failure.until <= now < failure.last_at + _SAME_ROW_S and failure.count >= _CRASHES:
                if len(failure.devices) < self._min_devices:
                    continue
                suspects = self._suspects(device, failure)
                if not any(place != device and model in suspects for place, model in serving):
                    continue
                quarantine_s = doubled_s(_FIRST_QUARANTINE_S, failure.quarantines, _MAX_QUARANTINE_S)
                # After the quarantine one more crash is enough for the next one.
                self.failures[device] = replace(
                    failure, count=_CRASHES - 1, until=now + quarantine_s, quarantines=failure.quarantines + 1
                )

    def quarantined(self, now: float) -> dict[str, str]:
        """Return the quarantined devices with the reason."""
        return {
            device: f"{_CRASHES} crashes in a row; tried again in {failure.until - now:.0f} s"
            for device, failure in self.failures.items()
            if now < failure.until and self._suspects(device, failure)
        }

    def _suspects(self, device: str, failure: DeviceFailure) -> frozenset[str]:
        """Return the models that crashed only on this device."""
        return failure.models.difference(*(other.models for place, other in self.failures.items() if place != device))
