"""Source images of requests in multipart forms.

Large files of a form stay on disk until they are decoded, so that many uploads need little memory.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from configs.open_files import is_reserved
from loadbalancer.api.body_budget import body_reservation
from loadbalancer.api.charsets import check_part_charset, form_charset
from loadbalancer.api.form_preamble import without_preamble
from loadbalancer.api.http_helpers import read_body
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.schema.errors import BodyTooLarge, InvalidRequest, Unavailable, UnsupportedMediaType
from loadbalancer.schema.parsing import shorten

log = logging.getLogger(__name__)

#: Returns the bytes of a file. Called in a thread.
FileReader = Callable[[], bytes]

_MAX_FILES = 16
#: Larger files of a form are on disk.
_MEMORY_BYTES_PER_FILE = 256 * 2**10
_MAX_FIELDS = 64
#: OpenAI's clients send a list of images, even of one, under the second name.
_FILES = {"image": "image", "image[]": "image", "mask": "mask"}
#: Some clients send only this name of a file where it is not ASCII (RFC 2231). The parser does not know it.
_EXTENDED_FILE_NAME = re.compile(rb";\s*filename\*[0-9*]*\s*=", re.IGNORECASE)
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a form."""

    file: BinaryIO
    #: Declared image format: png, jpeg, ...
    kind: str

    def read(self) -> bytes:
        """All bytes, from the start."""
        self.file.seek(0)
        return self.file.read()


@dataclass(slots=True)
class Form:
    """A parsed form: text fields, and files with their field names."""

    texts: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[str, Upload]] = field(default_factory=list)

    def file(self, name: str) -> FileReader | None:
        """A reader of the file with this name, or None. Raises `InvalidRequest` for several."""
        found = [upload for field_name, upload in self.parts if _FILES[field_name] == name]
        if len(found) > 1:
            text = f"Invalid value for '{name}': {len(found)} files. Only one image is allowed."
            raise InvalidRequest(text, param=name)
        return found[0].read if found else None


@contextlib.asynccontextmanager
async def read_form(
    request: Request, max_bytes: int, max_text_bytes: int, refusals: RefusalCounter
) -> AsyncIterator[Form]:
    """The multipart form; its files can be read until the context ends.

    `max_bytes` bounds the body and `max_text_bytes` all text fields together. Raises `InvalidRequest`, `BodyTooLarge`,
    `ClientClosed`, and `Unavailable` where the files cannot be stored.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise UnsupportedMediaType("This path takes multipart/form-data, or application/json.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaType("The Content-Encoding of a form is not supported.", headers={"accept-encoding": ""})
    max_in_memory = max_text_bytes + _MAX_FILES * _MEMORY_BYTES_PER_FILE
    parser = FormParser(request.headers, _read_form_body(request, max_bytes, max_in_memory), max_text_bytes)
    try:
        form = await parser.parse()
    except MultiPartException as broken:
        raise invalid_form(broken.message.rstrip(".")) from None
    except OSError as error:
        raise _storage_error(error, refusals) from None
    try:
        yield _sort_fields(form)
    finally:
        await form.close()


def _storage_error(error: OSError, refusals: RefusalCounter) -> Unavailable:
    headers = {"connection": "close"}  # the rest of the body is not read
    if error.errno in (errno.EMFILE, errno.ENFILE):
        refusals.add("too_many_open_files")
        text = "The server has too many files open to store the upload. Please try again shortly."
        return Unavailable(text, code="too_many_open_files", retry_after_s=1, headers=headers)
    log.warning("an upload cannot be stored in the temporary directory: %s", error)
    text = "The server's temporary directory is full or not writable, so that the upload cannot be stored."
    return Unavailable(text, code="storage_full", retry_after_s=10, headers=headers)


class _UploadFile(tempfile.SpooledTemporaryFile[bytes]):
    """A file that moves to the disk when it is large, unless the process has too many open."""

    _is_checked = False

    def rollover(self) -> None:
        super().rollover()
        if not self._is_checked:
            self._is_checked = True  # first: `fileno` calls this method
            if is_reserved(self.fileno()):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class FormParser(MultiPartParser):
    """Starlette's parser, which knows no limits of character sets, and of texts only one for each."""

    spool_max_size = _MEMORY_BYTES_PER_FILE

    def __init__(
        self, headers: Headers, stream: AsyncGenerator[bytes, None], max_text_bytes: int, files: str = "images"
    ) -> None:
        """`max_text_bytes` bounds all texts together. `files` is what the others are, in an error."""
        if boundary := parse_options_header(headers["content-type"])[1].get(b"boundary"):
            stream = without_preamble(stream, boundary)
        super().__init__(headers, stream, max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=max_text_bytes)
        self._form_charset = form_charset(headers["content-type"])
        self._text_bytes = 0
        self._files = files
        self._is_complete = False

    async def parse(self) -> FormData:
        """Return the form. Without its end, the last part would be missing unnoticed."""
        try:
            form = await super().parse()
        except MultiPartException as broken:
            if isinstance(broken.__cause__, FormParserError):
                raise MultiPartException(f"{broken.message.rstrip('.')}: {broken.__cause__}") from None
            raise
        if not self._is_complete:
            await form.close()
            raise MultiPartException("it ends before its last boundary")
        return form

    def on_end(self) -> None:
        self._is_complete = True

    def on_headers_finished(self) -> None:
        """Check the character set of a text before it is decoded."""
        disposition = self._current_part.content_disposition or b""
        if _EXTENDED_FILE_NAME.search(_QUOTED.sub(b"", disposition)):  # only that it is a file matters
            self._current_part.content_disposition = disposition + b'; filename="extended"'
        super().on_headers_finished()
        if self._current_part.file is not None:
            self._files_to_close_on_error[-1].close()
            file = _UploadFile(self.spool_max_size)
            self._files_to_close_on_error[-1] = file
            self._current_part.file.file = cast("BinaryIO", file)
        else:
            for name, value in self._current_part.item_headers:
                if name == b"content-type":
                    check_part_charset(value.decode("latin-1"), self._form_charset)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Count the bytes of all texts: decoded, each byte may take four."""
        if self._current_part.file is None:
            self._text_bytes += end - start
            if self._text_bytes > self.max_part_size:
                raise BodyTooLarge(self.max_part_size, f"beside its {self._files}")
        super().on_part_data(data, start, end)


async def _read_form_body(request: Request, max_bytes: int, max_in_memory: int) -> AsyncGenerator[bytes, None]:
    """`read_body` for a form. What goes beyond `max_in_memory` is on disk at the next chunk, and not reserved then."""
    size = 0
    async for chunk in read_body(request, max_bytes):
        size += len(chunk)
        yield chunk
        on_disk = min(size - max_in_memory, len(chunk))
        if on_disk > 0:
            body_reservation(request).remove(on_disk)


def _sort_fields(form: FormData) -> Form:
    found = Form()
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if not value.size and not value.filename:  # a field of a web page for which no file was chosen
                continue
            if name not in _FILES:
                text = f"Unexpected file in {shorten(name)}: files are allowed in 'image' and 'mask'."
                raise InvalidRequest(text, param=name, code="unknown_parameter")
            match = re.fullmatch(r"image/([a-z0-9]{1,16})", (value.content_type or "").lower())
            found.parts.append((name, Upload(value.file, match[1] if match else "png")))
        elif name in _FILES:
            raise InvalidRequest(f"Invalid type for '{name}': expected a file.", param=name, code="invalid_type")
        elif name in found.texts:
            raise InvalidRequest(f"Invalid value for {shorten(name)}: it is given more than once.", param=name)
        else:
            found.texts[name] = value
    return found


def invalid_form(reason: str) -> InvalidRequest:
    """The error of a form that cannot be read."""
    return InvalidRequest(f"The form cannot be read: {reason}.", code="invalid_form")
