"""Image files for tests, valid and invalid."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

from PIL import Image


def make_image(width: int = 64, height: int = 64, mode: str = "RGB") -> Image.Image:
    """No two columns or rows are equal, so that a rotated or mirrored image shows."""
    red = Image.linear_gradient("L").resize((width, height))
    green = Image.linear_gradient("L").rotate(90).resize((width, height))
    blue = Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, green, blue)).convert(mode)


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int = 64, height: int = 64, mode: str = "RGB") -> bytes:
    return file(make_image(width, height, mode))


def half(mode: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """The last band is zero in the left half and full in the right; other bands are full."""
    width, height = size
    last = Image.new("L", size, 255)
    last.paste(0, (0, 0, width // 2, height))
    return Image.merge(mode, [Image.new("L", size, 255)] * (len(mode) - 1) + [last]) if len(mode) > 1 else last


def animated(kind: str) -> bytes:
    return file(make_image(), kind, save_all=True, append_images=[make_image().transpose(Image.Transpose.ROTATE_90)])


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
