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
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(chunks: bytes, width: int = 64, height: int = 64) -> bytes:
    """Return a black PNG with one bit per pixel and these chunks before its pixels."""
    row, compressor = bytes(1 + (width + 7) // 8), zlib.compressobj()
    pixels = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def scan_bomb(side: int, scans: int) -> bytes:
    """Return a progressive JPEG of `side * side` grey pixels, with this many scans that refine all of them."""
    blocks = ((side + 7) // 8) ** 2
    out = (
        b"\xff\xd8"
        + segment(0xDB, b"\0" + b"\1" * 64)
        + segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    )
    # Huffman tables of one code each: "no difference", and "end of band for 16384 blocks and more".
    for table, symbol in ((0x00, 0x00), (0x10, 0xE0)):
        out += segment(0xC4, bytes([table, 1]) + bytes(15) + bytes([symbol]))
    runs = [max(min(32_767, blocks - first), 16_384) - 16_384 for first in range(0, blocks, 32_767)]
    refinement = _bits("".join(f"0{run:014b}" for run in runs))

    def scan(first: int, last: int, approximation: int, data: bytes) -> bytes:
        return segment(0xDA, b"\1\1\0" + bytes([first, last, approximation])) + data

    out += scan(0, 0, 0, _bits("0" * blocks)) + scan(1, 63, 0x01, refinement)
    return out + scan(1, 63, 0x10, refinement) * (scans - 2) + b"\xff\xd9"


def _bits(text: str) -> bytes:
    """Return the bits, padded with ones, with a zero byte after each 0xFF."""
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
