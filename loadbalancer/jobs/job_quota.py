"""Room for unfinished jobs and their source images, by owner."""

from __future__ import annotations

from configs.sections import Jobs as JobSettings
from loadbalancer.scheduling.owner_quota import OwnerQuota
from loadbalancer.schema.errors import TooBusy


class JobQuota:
    """Counts unfinished jobs, and the bytes of their source images and inputs."""

    def __init__(self, settings: JobSettings) -> None:
        self._jobs = OwnerQuota(settings.max_unfinished, settings.max_unfinished_per_key)
        self._sources = OwnerQuota(settings.max_bytes)

    def __repr__(self) -> str:
        return f"JobQuota({self._jobs!r}, {self._sources!r})"

    def refusal(self, owner: str, source_bytes: int) -> TooBusy | None:
        """Return the error for a job with source images of this size; None where there is room."""
        if self._jobs.room(owner) < 1:
            whose = self._jobs.describe(owner)
            return TooBusy(f"No more unfinished jobs are accepted: {whose}. Please try again later.", retry_after_s=10)
        if source_bytes and not self._sources.fits(owner, source_bytes):
            whose = self._sources.describe(owner)
            text = f"There is no room for more source images and inputs of jobs: {whose} bytes. Please try again later."
            return TooBusy(text, retry_after_s=10)
        return None

    def reserve(self, owner: str, source_bytes: int) -> None:
        """Count a job."""
        self._jobs.add(owner, 1)
        self._sources.add(owner, source_bytes)

    def release(self, owner: str, source_bytes: int) -> None:
        """Count a job no longer."""
        self._jobs.remove(owner, 1)
        self._sources.remove(owner, source_bytes)
