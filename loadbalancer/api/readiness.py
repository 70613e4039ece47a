"""Whether the models take requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from loadbalancer.schema.errors import Unavailable, shutting_down
from loadbalancer.services import Services


async def check_ready(services: Services, models: Iterable[str]) -> None:
    """Raise `Unavailable` with the reason where one of the models takes no requests, or the server stops."""
    if not services.tracker.is_open:
        raise shutting_down()
    if problem := await asyncio.to_thread(services.data_dir.problem):
        text = f"No worker can start and no job can be stored: {problem}. Restart the server."
        raise Unavailable(text, code="storage_unavailable", retry_after_s=60)
    # The controller's bounds are newer: they may have changed since this program started.
    reported = services.control.models(time.monotonic())
    min_workers = {
        name: reported[name].min_workers if name in reported else services.settings.scaling(name).min_workers
        for name in models
    }
    if broken := {name: why for name in min_workers if (why := services.tracker.start_failure(name))}:
        text = "; ".join(f"the model '{name}' cannot start: {why}" for name, why in broken.items())
        raise Unavailable(f"{text[0].upper()}{text[1:]}.", code="model_cannot_start", retry_after_s=60)
    missing = [name for name, n in min_workers.items() if n and not services.scheduler.is_ready(name)]
    if missing:
        raise Unavailable(f"No worker is ready for: {', '.join(missing)}.", code="not_ready", retry_after_s=1)
