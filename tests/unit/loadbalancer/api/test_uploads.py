"""Forms: files that cannot be stored, that are too large, or were not chosen."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from fastapi import Request
from starlette.types import Message

from loadbalancer.api.uploads import read_form
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.schema.errors import BodyTooLarge, Unavailable

PART = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
#: More than is kept in memory.
FILE = PART % (b"image", b'; filename="x"', b"x" * (2 << 20))


def form(body: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(
        {"type": "http", "method": "POST", "headers": [(b"content-type", b"multipart/form-data; boundary=b")]}, receive
    )


async def test_upload_without_room_on_disk_is_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(Unavailable) as rejected:
        async with read_form(form(FILE + b"--b--\r\n"), 8 << 20, 1 << 20, RefusalCounter()):
            pytest.fail("the file cannot have been stored")
    assert (rejected.value.status, rejected.value.code) == (503, "storage_full")
    assert rejected.value.headers == {"connection": "close", "retry-after": "10"}
    assert "Traceback" not in caplog.text


async def test_large_file_is_on_disk_while_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with read_form(form(FILE + b"--b--\r\n"), 8 << 20, 1 << 20, RefusalCounter()) as parsed:
        reader = parsed.file("image")
        assert reader is not None
        assert reader() == b"x" * (2 << 20)
    assert not list(tmp_path.iterdir())


async def test_field_without_a_chosen_file_counts_as_absent() -> None:
    """Browsers send it with an empty name and without content. A file with a name may be empty by mistake."""
    body = PART % (b"image", b'; filename="x"', b"x") + PART % (b"mask", b'; filename=""', b"")
    async with read_form(form(body + b"--b--\r\n"), 1 << 20, 1000, RefusalCounter()) as parsed:
        assert parsed.file("image") is not None
        assert parsed.file("mask") is None
    body = PART % (b"mask", b'; filename="m.png"', b"")
    async with read_form(form(body + b"--b--\r\n"), 1 << 20, 1000, RefusalCounter()) as parsed:
        assert parsed.file("mask") is not None


@pytest.mark.parametrize("name", [b"prompt", b"image"])
async def test_form_above_its_limits_is_413(name: bytes) -> None:
    body = FILE if name == b"image" else PART % (b"prompt", b"", b"x" * 600) + PART % (b"user", b"", b"x" * 600)
    with pytest.raises(BodyTooLarge):
        async with read_form(form(body + b"--b--\r\n"), 1 << 20, 1000, RefusalCounter()):
            pytest.fail("the form is too large")


async def test_texts_are_counted_while_they_arrive() -> None:
    """Not once all of them are decoded: each byte may take four then."""
    chunks = [PART % (b"field-%d" % number, b"", b"x" * 600) for number in range(3)]

    async def receive() -> Message:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": True}

    request = form(b"")
    with pytest.raises(BodyTooLarge):
        async with read_form(Request(request.scope, receive), 1 << 20, 1000, RefusalCounter()):
            pytest.fail("the form is too large")
    assert len(chunks) == 1
