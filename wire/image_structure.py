"""Checks of an image file's structure, before anything of it is decoded: scans, segments, chunks and metadata.

Each of these can cost a decoder far more than its bytes: a scan of 42 bytes goes over all pixels of a JPEG.
"""

from __future__ import annotations

import re

#: Encoders write about 10 scans.
MAX_SCANS = 100
#: Segments of a JPEG: each scan may have its own tables, and an ICC profile up to 255 segments.
MAX_SEGMENTS = 1024
#: Chunks of a PNG. Encoders split the pixels in chunks of 8 KiB and more.
MAX_PNG_CHUNKS = 16_384
MAX_WEBP_CHUNKS = 1024

#: A marker: not a stuffed zero byte, not a restart within a scan.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_SOS, _EOI = 0xDA, 0xD9
#: APP0 to APP15 and comments.
_METADATA_MARKERS = frozenset({*range(0xE0, 0xF0), 0xFE})
#: The markers that begin with a length: frames, tables, scan headers and metadata. Their content may look like markers.
_SIZED_MARKERS = (frozenset(range(0xC0, 0xE0)) - {0xC8, *range(0xD0, 0xDA), 0xDE, 0xDF}) | {_SOS} | _METADATA_MARKERS
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"tRNS"})
_WEBP_METADATA = frozenset({b"ICCP", b"EXIF", b"XMP "})


def find_problem(data: bytes, max_metadata_bytes: int) -> str | None:
    """Why a file of this structure is not decoded; None where it may be."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_problem(data, max_metadata_bytes)
    if data.startswith(_PNG_SIGNATURE):
        return _png_problem(data, max_metadata_bytes)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_problem(data, max_metadata_bytes)
    return None


def _jpeg_problem(data: bytes, max_metadata_bytes: int) -> str | None:
    """Skip by their length the segments that a decoder skips, and no others: it finds no scan that is not counted here.

    An end of the image counts only where a decoder sees it, not inside a table.
    """
    scans = segments = metadata = 0
    match = _MARKER.search(data, 2)
    while match is not None:
        code, position = match[1][0], match.end()
        if code == _EOI:  # what follows are previews, which are not decoded
            return None
        segments += 1
        scans += code == _SOS
        if code in _SIZED_MARKERS:
            length = int.from_bytes(data[position : position + 2], "big")
            metadata += length if code in _METADATA_MARKERS else 0
            position += length
        if scans > MAX_SCANS:
            return f"it has more than {MAX_SCANS} scans"
        if segments > MAX_SEGMENTS:
            return f"it has more than {MAX_SEGMENTS} segments"
        if metadata > max_metadata_bytes:
            return _too_much_metadata(max_metadata_bytes)
        match = _MARKER.search(data, position)
    return None


def _png_problem(data: bytes, max_metadata_bytes: int) -> str | None:
    chunks = metadata = 0
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        length, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if name == b"IEND":
            return None
        chunks += 1
        if name not in _PNG_PIXELS:
            metadata += min(length, len(data) - position)
        if chunks > MAX_PNG_CHUNKS:
            return f"it has more than {MAX_PNG_CHUNKS} chunks"
        if metadata > max_metadata_bytes:
            return _too_much_metadata(max_metadata_bytes)
        position += 12 + length
    return None


def _webp_problem(data: bytes, max_metadata_bytes: int) -> str | None:
    chunks = metadata = 0
    position, end = 12, min(8 + int.from_bytes(data[4:8], "little"), len(data))
    while position + 8 <= end:
        name, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        chunks += 1
        if name in _WEBP_METADATA:
            metadata += min(length, end - position)
        if chunks > MAX_WEBP_CHUNKS:
            return f"it has more than {MAX_WEBP_CHUNKS} chunks"
        if metadata > max_metadata_bytes:
            return _too_much_metadata(max_metadata_bytes)
        position += 8 + length + length % 2
    return None


def _too_much_metadata(limit: int) -> str:
    return f"its metadata (EXIF, ICC profile, XMP, texts) is larger than {limit} bytes, the maximum"
