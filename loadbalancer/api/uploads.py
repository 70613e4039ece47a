"""Source pictures on their way in: the form that brings them, and decoding them beside the event loop.

A large file of a form waits on disk until its turn to be decoded comes, so that many uploads take little memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from configs.settings import Limits
from loadbalancer.api.http_helpers import client_disconnected, limit_body
from loadbalancer.generation.source_images import Size, SourceImages, decode_images
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.requests import shorten

#: Gives the bytes of a file; called in a thread.
Reader = Callable[[], bytes]

#: Pictures decoded at one time: one of many megapixels takes hundreds of megabytes on its way to its pixels.
_AT_ONCE = 2
_MOST_FILES = 16
_MOST_FIELDS = 64
#: OpenAI's clients send a list of pictures, even of one, under the second name.
_FILES = {"image": "image", "image[]": "image", "mask": "mask"}


class ImageDecoder:
    """Turns files into pixels, in threads of its own.

    They are few, and always the same: a thread's allocator keeps some of what decoding took.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, "decode")

    async def decode(
        self, image: Reader, mask: Reader | None, limits: Limits, *, size: Size | None, alpha_marks: bool
    ) -> SourceImages:
        """See `sources.prepare`. Raises `InvalidRequest`, also where a reader does."""

        def work() -> SourceImages:
            return decode_images(image(), mask() if mask else None, limits, size=size, alpha_marks=alpha_marks)

        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a form."""

    file: BinaryIO
    #: What it says that it is: png, jpeg, ...
    kind: str

    def read(self) -> bytes:
        """Its bytes, each time from the first."""
        self.file.seek(0)
        return self.file.read()


@dataclass(slots=True)
class Form:
    """A form that was read: its texts, and its files as they were named."""

    texts: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[str, Upload]] = field(default_factory=list)

    def file(self, name: str) -> Reader | None:
        """The one file of this name, if there is one. Raises `InvalidRequest` for several."""
        found = [upload for own, upload in self.parts if _FILES[own] == name]
        if len(found) > 1:
            text = f"Invalid value for '{name}': {len(found)} files. One picture is taken."
            raise InvalidRequest(text, param=name)
        return found[0].read if found else None


@contextlib.asynccontextmanager
async def read_form(request: Request, most: int, most_text: int) -> AsyncIterator[Form]:
    """The multipart form; its files can be read until the context ends.

    `most` bounds the body and `most_text` each of its texts, in bytes. Raises `InvalidRequest`, `BodyTooLarge` and
    `ClientClosed`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        _refuse("it must be multipart/form-data")
    try:
        form = await limit_body(request, most).form(
            max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=most_text
        )
    except ClientDisconnect:
        raise client_disconnected() from None
    except HTTPException as broken:
        _refuse(broken.detail.rstrip("."))
    except UnicodeError:  # of a character set that the form names
        _refuse("its texts are not in the character set that it names")
    try:
        yield _sort(form)
    finally:
        await form.close()


def _sort(form: FormData) -> Form:
    found = Form()
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in _FILES:
                text = f"Unexpected file in {shorten(name)}: files are taken in 'image' and 'mask'."
                raise InvalidRequest(text, param=name, code="unknown_parameter")
            found.parts.append((name, Upload(value.file, _kind(value.content_type))))
        elif name in _FILES:
            raise InvalidRequest(f"Invalid type for '{name}': expected a file.", param=name, code="invalid_type")
        elif name in found.texts:
            raise InvalidRequest(f"Invalid value for {shorten(name)}: it is given more than once.", param=name)
        else:
            found.texts[name] = value
    return found


def _kind(media_type: str | None) -> str:
    match = re.fullmatch(r"image/([a-z0-9]{1,16})", (media_type or "").lower())
    return match[1] if match else "png"


def _refuse(why: str) -> NoReturn:
    raise InvalidRequest(f"The form cannot be read: {why}.", code="invalid_form")
