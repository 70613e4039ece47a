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
        #: By owner, those that are due first in front.
        self._pending: dict[str, list[PendingDelivery]] = {}
        self._running: dict[str, PendingDelivery] = {}
        self._of_host: Counter[tuple[str, str]] = Counter()
        self._quota = OwnerQuota(max_concurrent)

    def __len__(self) -> int:
        return len(self._running)

    def __repr__(self) -> str:
        due = sum(map(len, self._pending.values()))
        return f"<DeliveryQueue {len(self)} under way to {len(self._of_host)} hosts, {due} due>"

    def replace_pending(self, due: Iterable[PendingDelivery]) -> None:
        """Replace the due deliveries; those under way are left out."""
        self._pending = {}
        for delivery in due:
            if delivery.job not in self._running:
                self._pending.setdefault(delivery.owner, []).append(delivery)

    def start_next(self) -> PendingDelivery | None:
        """Start a delivery of the owner with the fewest under way; return None if none may start."""
        for owner in sorted(self._pending, key=self._quota.held):
            if self._quota.room(owner) > 0 and (chosen := self._take(owner)) is not None:
                return self._start(chosen)
        return None

    def _take(self, owner: str) -> PendingDelivery | None:
        """Remove and return the owner's first delivery to a host that takes one more; None if there is none."""
        waiting = self._pending[owner]
        for index, delivery in enumerate(waiting):
            if self._of_host[owner, delivery.host] < MAX_PER_HOST:
                del waiting[index]
                if not waiting:
                    del self._pending[owner]
                return delivery
        return None

    def _start(self, chosen: PendingDelivery) -> PendingDelivery:
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
