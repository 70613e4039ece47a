"""Images behind URLs. Whoever knows the id of an image may read it, so that ids cannot be guessed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from loadbalancer.storage.database import Database
from loadbalancer.storage.records import StoredResult
from loadbalancer.storage.repository import Repository

_ID_BYTES = 24


class ResultStore:
    """Images in the database, for `ttl_s` seconds each. Methods raise `StorageUnavailable`.

    They survive restarts, so their age is that of the system clock, as far as it does not jump.
    """

    def __init__(self, database: Database, ttl_s: float) -> None:
        self._database = database
        self._ttl_s = ttl_s

    async def add(self, owner: str, media_type: str, images: Sequence[bytes]) -> list[str]:
        """Store the images and return their ids."""
        ids, now = [secrets.token_urlsafe(_ID_BYTES) for _ in images], self._database.wall()

        def work(repository: Repository) -> None:
            for result, image in zip(ids, images, strict=True):
                repository.results.add(result, owner, media_type, image, now)

        await self._database.do(work)
        return ids

    async def link(self, job: str, item: int, media_type: str) -> str:
        """Return an id for the finished image of a job. It works for at least half of `ttl_s`."""
        result, now = secrets.token_urlsafe(_ID_BYTES), self._database.wall()
        not_before = now - self._ttl_s / 2
        return await self._database.do(
            lambda repository: repository.results.link(result, media_type, job, item, now, not_before)
        )

    async def find(self, result: str) -> StoredResult | None:
        """Return what is known of the image; None if the id is unknown or too old."""
        not_before = self._database.retention_time() - self._ttl_s
        return await self._database.do(lambda repository: repository.results.find(result, not_before))

    async def part(self, result: str, offset: int, size: int) -> bytes:
        """Return some bytes of the image; none if it was deleted."""
        return await self._database.do(lambda repository: repository.results.read(result, offset, size))

    def remaining_s(self, result: StoredResult) -> float:
        age_s = self._database.retention_time() - result.made
        return self._ttl_s - min(max(age_s, 0.0), self._ttl_s)
