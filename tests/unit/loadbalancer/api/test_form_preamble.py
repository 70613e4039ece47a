"""What a form may have around its parts (RFC 2046, 5.1.1), in whatever pieces it arrives."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException

from loadbalancer.api.uploads import FormParser

KIND = "multipart/form-data; boundary=XyZ"
FILE = b'form-data; name="image"; filename="a.png"'
EXPECTED = {"prompt": "a seven", "image": b"PNG\r\n--data"}
MIME = b"This is a multi-part message in MIME format.\r\n"
#: Just what may be before the first part.
LONGEST = b"x" * ((64 << 10) - 1) + b"\n"


def body(
    before: bytes = b"", boundary: bytes = b"XyZ", padding: bytes = b"", after: bytes = b"\r\n", file: bytes = FILE
) -> bytes:
    delimiter = b"--" + boundary + padding + b"\r\n"
    return b"".join(
        (
            *(before, delimiter, b'Content-Disposition: form-data; name="prompt"\r\n\r\na seven\r\n'),
            *(delimiter, b"Content-Disposition: ", file, b"\r\n\r\nPNG\r\n--data\r\n--", boundary, b"--", after),
        )
    )


async def parsed(content: bytes, kind: str, size: int) -> dict[str, Any]:
    async def stream() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(content), size):
            yield content[start : start + size]
        yield b""

    form = await FormParser(Headers({"content-type": kind}), stream(), 1000).parse()
    found = {name: value.file.read() if isinstance(value, UploadFile) else value for name, value in form.multi_items()}
    await form.close()
    return found


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (body(), KIND),
        (body(MIME), KIND),
        (body(b"\r\n"), KIND),
        (body(b"\r\nsome text\r\n"), KIND),
        (body(b"lines\nthat end in LF\n"), KIND),
        (body(b"--XyZ is no line of its own\r\n --XyZ\r\n--XyZa\r\n"), KIND),
        (body(padding=b" \t "), KIND),
        (body(MIME, padding=b" " * 100), KIND),
        (body(after=b""), KIND),
        (body(after=b"  \r\n"), KIND),
        (body(after=b"\r\nan epilogue\r\n--XyZ\r\n"), KIND),
        (body(MIME, b"X yZ"), 'multipart/form-data; boundary="X yZ"'),
        (body(MIME, b"a'()+_,-./:=?"), 'multipart/form-data; boundary="a\'()+_,-./:=?"'),
        (body(MIME), "Multipart/Form-Data; charset=utf-8; BOUNDARY=XyZ ;"),
        (body(file=b"form-data; name=\"image\"; filename*=UTF-8''h%C3%A4.png"), KIND),
        (body(file=b"form-data; filename*0*=UTF-8''h%C3%A4; filename*1=.png; name=image"), KIND),
        (body(file=FILE + b"; filename*=UTF-8''h%C3%A4.png"), KIND),
    ],
)
async def test_form_is_read(content: bytes, kind: str, size: int) -> None:
    assert await parsed(content, kind, size) == EXPECTED


@pytest.mark.parametrize("size", [1000, 1 << 20])
async def test_longest_preamble_is_read_and_a_longer_one_refused(size: int) -> None:
    assert await parsed(body(LONGEST), KIND, size) == EXPECTED
    with pytest.raises(MultiPartException, match="does not begin with the boundary"):
        await parsed(body(b"xx" + LONGEST), KIND, size)


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends before its last boundary"),
        (b"no form", "does not begin with the boundary"),
        (b"--XyZ", "does not begin with the boundary"),
        (body(padding=b" " * 101), "too many spaces"),
        (body(MIME, b"other"), "does not begin with the boundary"),
        (body().replace(b"\r\n", b"\n"), "lines end in LF"),
        (body(MIME).replace(b"form-data; ", b"form-data;\r\n "), "Invalid multipart data: Found invalid character 32"),
    ],
)
async def test_what_is_no_form_is_refused(content: bytes, reason: str, size: int) -> None:
    with pytest.raises(MultiPartException) as refused:
        await parsed(content, KIND, size)
    assert reason in refused.value.message


async def test_a_name_in_quotes_makes_no_file() -> None:
    content = body().replace(b'name="prompt"', b'name="a; filename*=b"')
    assert (await parsed(content, KIND, 100))["a; filename*=b"] == "a seven"
