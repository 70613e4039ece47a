"""`GET /v1/results/{name}`: the images behind URLs. The name is the authority: it cannot be guessed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from loadbalancer.api.conditional_requests import has_entity_tag
from loadbalancer.api.openapi import responses
from loadbalancer.api.result_links import PATH
from loadbalancer.api.storage_errors import stored
from loadbalancer.schema.errors import NotFound
from loadbalancer.services import Services
from loadbalancer.storage.records import StoredResult
from loadbalancer.storage.result_store import ResultStore

#: Bytes that are in memory at once for one download.
_PART_BYTES = 256 << 10
_IMAGE = responses("ErrorBody", 404, 503)
_IMAGE[200] = {
    "description": "The image file.",
    "content": {
        f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in ("png", "jpeg", "webp")
    },
}


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["images"])

    @routes.get(f"{PATH}/{{name}}", summary="Fetch an image by its URL", responses=_IMAGE, response_class=Response)
    async def image_file(request: Request, name: str) -> Response:
        """The image of a response with `response_format: url`, until the URL expires. No key is needed."""
        result, _, extension = name.partition(".")
        found = await stored(services.results.find(result))
        if found is None or found.media_type != f"image/{extension}":
            text = "There is no image at this URL, or the URL has expired."
            raise NotFound(text, code="result_not_found")
        etag = f'"{result}"'  # the image behind a name never changes
        if has_entity_tag(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"etag": etag})
        return _ImageFile(services.results, result, found, etag)

    return routes


class _ImageFile(StreamingResponse):
    """The image in parts. If it is deleted meanwhile, the connection closes early."""

    def __init__(self, store: ResultStore, result: str, found: StoredResult, etag: str) -> None:
        headers = {
            "content-length": str(found.size),
            "etag": etag,
            "cache-control": f"private, max-age={int(store.remaining_s(found))}",
            "content-security-policy": "default-src 'none'; sandbox",
            "x-content-type-options": "nosniff",
        }
        super().__init__(_parts(store, result, found.size), media_type=found.media_type, headers=headers)


async def _parts(store: ResultStore, result: str, size: int) -> AsyncIterator[bytes]:
    offset = 0
    while offset < size:
        part = await store.part(result, offset, _PART_BYTES)
        if not part:
            raise NotFound("The image was deleted.")
        offset += len(part)
        yield part
