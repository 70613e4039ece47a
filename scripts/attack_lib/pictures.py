"""Image files that are small and cost much."""

from __future__ import annotations

import struct
import zlib


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, depth: int = 8, color: int = 2, extra: bytes = b"") -> bytes:
    """A black PNG. `color` 0 is grey, 2 RGB; `extra` are chunks between the header and the pixels."""
    row = b"\0" * (1 + (width * depth * {0: 1, 2: 3}[color] + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), extra, _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def honest_png() -> bytes:
    return png(64, 64)


def many_chunks(count: int) -> bytes:
    return png(64, 64, extra=_chunk(b"abCd", b"") * count)


def text_bomb(size: int) -> bytes:
    """A text that is compressed from `size` bytes."""
    return png(64, 64, extra=_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * size, 9)))


def broken_tags(count: int) -> bytes:
    """EXIF with tags that point nowhere: Pillow warns of each."""
    tags = b"".join(struct.pack(">HHII", number, 2, 0xFFFFFFF0, 0) for number in range(count))
    exif = b"MM\0*\0\0\0\x08" + struct.pack(">H", count) + tags + b"\0\0\0\0"
    return png(64, 64, extra=_chunk(b"eXIf", exif))


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def _bits(text: str) -> bytes:
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def jpeg_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG whose refinement scans are a few bytes each, and pass over every block (ITU-T T.81)."""
    one_code = bytes([1] + [0] * 15)
    blocks = ((side + 7) // 8) ** 2
    frame = _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    tables = _segment(0xDB, b"\0" + b"\1" * 64) + frame
    tables += _segment(0xC4, b"\x00" + one_code + b"\0") + _segment(0xC4, b"\x10" + one_code + b"\xe0")
    first = _segment(0xDA, b"\1\1\x00\0\0\0") + _bits("0" * blocks)
    runs, left = "", blocks
    while left > 0:  # runs of 16384 to 32767 blocks without a coefficient
        run = max(min(left, 32767), 16384)
        runs += "0" + format(run - 16384, "014b")
        left -= run
    body = _bits(runs)

    def scan(high: int, low: int) -> bytes:
        return _segment(0xDA, bytes((1, 1, 0, 1, 63, high << 4 | low))) + body

    return b"\xff\xd8" + tables + first + scan(0, 1) + scan(1, 0) * scans + b"\xff\xd9"


def hidden_end(jpeg: bytes) -> bytes:
    """The JPEG with a quantization table whose values look like the marker of its end."""
    return jpeg[:2] + _segment(0xDB, b"\1" + b"\xff\xd9" * 32) + jpeg[2:]
