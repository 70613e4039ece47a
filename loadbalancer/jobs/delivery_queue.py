"""The order of webhook deliveries: round robin over owners, so that a slow receiver delays only its own. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from loadbalancer.scheduling.owner_quota import OwnerQuota
from loadbalancer.storage.records import PendingDelivery

#: Deliveries at once to one host for one owner.
MAX_PER_HOST = 4


class DeliveryQueue:
    """The due deliveries that were read last, and those under way."""

    def __init__(self, max_concurrent: int) -> None:
        """An owner without deliveries under way is served even if others fill `max_concurrent`."""
        self._pending: list[PendingDelivery] = []
        self._running: dict[str, PendingDelivery] = {}
        self._of_host: Counter[tuple[str, str]] = Counter()
        self._quota = OwnerQuota(max_concurrent)

    def __len__(self) -> int:
        return len(self._running)

    def __repr__(self) -> str:
        return f"<DeliveryQueue {len(self)} under way to {len(self._of_host)} hosts, {len(self._pending)} due>"

    def replace_pending(self, due: Iterable[PendingDelivery]) -> None:
        """Replace the due deliveries; those under way are left out."""
        self._pending = [delivery for delivery in due if delivery.job not in self._running]

    def start_next(self) -> PendingDelivery | None:
        """Start a delivery of the owner with the fewest under way; return None if none may start."""
        startable = [index for index, delivery in enumerate(self._pending) if self._may_start(delivery)]
        if not startable:
            return None
        chosen = self._pending.pop(min(startable, key=lambda index: self._quota.held(self._pending[index].owner)))
        self._running[chosen.job] = chosen
        self._of_host[chosen.owner, chosen.host] += 1
        self._quota.add(chosen.owner, 1)
        return chosen

    def finish(self, delivery: PendingDelivery) -> None:
        """End a delivery that was started. Raises `KeyError` for any other."""
        del self._running[delivery.job]
        place = delivery.owner, delivery.host
        self._of_host[place] -= 1
        if not self._of_host[place]:  # clients name as many hosts as they like
            del self._of_host[place]
        self._quota.remove(delivery.owner, 1)

    def _may_start(self, delivery: PendingDelivery) -> bool:
        in_use = self._of_host[delivery.owner, delivery.host]
        return in_use < MAX_PER_HOST and self._quota.room(delivery.owner) > 0
