"""The URLs of images: stored, and named as the client reaches this server."""

from __future__ import annotations

import re
from collections.abc import Sequence

from configs.sections import Server
from loadbalancer.api.storage_errors import stored
from loadbalancer.storage.result_store import ResultStore
from wire.inputs import ImageFormat

PATH = "/v1/results"
_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


class ResultLinks:
    """Makes the URLs of one response. Methods raise `Unavailable` when the storage fails."""

    def __init__(self, store: ResultStore, base_url: str, image_format: ImageFormat) -> None:
        self._store = store
        self._base_url = base_url
        self._format = image_format

    async def add(self, owner: str, images: Sequence[bytes]) -> list[str]:
        """Store the images and return their URLs."""
        ids = await stored(self._store.add(owner, f"image/{self._format}", images))
        return [self._url(result) for result in ids]

    async def link(self, job: str, item: int) -> str:
        """Return a URL of the finished image of a job."""
        return self._url(await stored(self._store.link(job, item, f"image/{self._format}")))

    def _url(self, result: str) -> str:
        return f"{self._base_url}{PATH}/{result}.{self._format}"


def base_url(host: str, scheme: str, listener: tuple[str, int | None] | None, server: Server) -> str:
    """Return the configured URL, else the one that the client used, without a slash at its end.

    `host` is the header of that name. `listener` is used in its place where it is not valid.
    """
    if server.public_url is not None:
        return server.public_url.rstrip("/")
    if not _HOST.fullmatch(host):
        address, port = listener or (server.host, server.port)
        host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return f"{scheme}://{host}"
