"""Files whose structure costs a decoder far more than their bytes, and honest files of every kind."""

from __future__ import annotations

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from loadbalancer.generation.decoding.messages import ImageLimits
from loadbalancer.generation.decoding.pixels import ImageRejected, decode_images
from tests.support.images import chunk, file, make_image, png, png_with, scan_bomb, segment
from wire.image_structure import (
    MAX_PNG_CHUNKS,
    MAX_SCANS,
    MAX_SEGMENTS,
    MAX_WEBP_CHUNKS,
    find_problem,
)

MAX_METADATA = 100_000
LIMITS = ImageLimits(
    max_source_pixels=1 << 20,
    max_source_side=1 << 14,
    max_metadata_bytes=MAX_METADATA,
    max_pixels=1 << 20,
    min_side=8,
)
JPEG, WEBP = file(make_image(), "JPEG"), file(make_image(), "WEBP")
EXIF = Image.Exif()
EXIF[0x010E] = "x" * 40_000


def jpeg_with(segments: bytes) -> bytes:
    return JPEG[:2] + segments + JPEG[2:]


def webp_with(chunks: bytes) -> bytes:
    body = WEBP[8:] + chunks
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def webp_chunk(name: bytes, data: bytes) -> bytes:
    return name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)


def png_text(length: int) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * length)
    return file(make_image(), pnginfo=info)


#: A quantization table whose values look like the marker of an image's end.
END_IN_TABLE = segment(0xDB, b"\1" + b"\xff\xd9" * 32)
METADATA = r"its metadata \(EXIF, ICC profile, XMP, texts\) is larger than 100000 bytes"
BOMBS = {
    "scans": (scan_bomb(64, MAX_SCANS + 1), "more than 100 scans"),
    "scans after fill bytes": (scan_bomb(64, MAX_SCANS + 1).replace(b"\xff\xda", b"\xff\xff\xda"), "100 scans"),
    "scans in a reserved segment": (
        jpeg_with(segment(0x02, scan_bomb(64, MAX_SCANS + 1)[2:])),
        "more than 100 scans",
    ),
    "scans after the end in a table": (
        scan_bomb(64, MAX_SCANS + 1).replace(b"\xff\xd8", b"\xff\xd8" + END_IN_TABLE, 1),
        "more than 100 scans",
    ),
    "segments": (jpeg_with(segment(0xED, b"") * (MAX_SEGMENTS + 1)), "more than 1024 segments"),
    "tables": (jpeg_with(segment(0xDB, b"\0" + b"\1" * 64) * (MAX_SEGMENTS + 1)), "more than 1024 segments"),
    "EXIF segments": (jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 2), METADATA),
    "ICC segments": (jpeg_with(segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000)) * 2), METADATA),
    "comments": (jpeg_with(segment(0xFE, bytes(60_000)) * 2), METADATA),
    "PNG chunks": (png_with(chunk(b"abCd", b"") * (MAX_PNG_CHUNKS + 1)), "more than 16384 chunks"),
    "empty IDAT chunks": (png_with(chunk(b"IDAT", b"") * (MAX_PNG_CHUNKS + 1)), "more than 16384 chunks"),
    "PNG text": (png_with(chunk(b"tEXt", b"a\0" + bytes(MAX_METADATA))), METADATA),
    "PNG EXIF": (png_with(chunk(b"eXIf", bytes(60_000)) * 2), METADATA),
    "WebP chunks": (webp_with(webp_chunk(b"abcd", b"") * (MAX_WEBP_CHUNKS + 1)), "more than 1024 chunks"),
    "WebP EXIF": (webp_with(webp_chunk(b"EXIF", bytes(MAX_METADATA + 1))), METADATA),
    "long": (png_with(b"", 20_000, 1), "it is 20000x1; a side of at most 16384 pixels is allowed"),
    "tall": (png_with(b"", 1, 20_000), "it is 1x20000; a side of at most 16384 pixels is allowed"),
}


@pytest.mark.parametrize(("content", "reason"), BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_rejected_before_they_are_decoded(content: bytes, reason: str) -> None:
    with pytest.raises(ImageRejected, match=reason):
        decode_images(content, None, LIMITS, size=(64, 64), use_alpha_as_mask=False)


HONEST = {
    "PNG": png(),
    "PNG of many chunks": png_with(chunk(b"IDAT", b"") * 1000),
    "PNG with text": png_text(50_000),
    "PNG with EXIF": file(make_image(), exif=EXIF),
    "PNG with anything behind": png() + chunk(b"tEXt", bytes(2 * MAX_METADATA)),
    "JPEG": JPEG,
    "progressive JPEG": file(make_image(512, 512), "JPEG", progressive=True),
    "JPEG with EXIF": file(make_image(), "JPEG", exif=EXIF),
    "JPEG with an ICC profile": file(make_image(), "JPEG", icc_profile=bytes(range(256)) * 300),
    "JPEG with a preview in EXIF": jpeg_with(segment(0xE1, b"Exif\0\0" + scan_bomb(64, 200))),
    "JPEG with previews behind": JPEG + scan_bomb(64, 200),
    "JPEG with scans in a table": jpeg_with(segment(0xDB, b"\1" + b"\xff\xda" * 32) * 5),
    "JPEG of many scans": scan_bomb(64, MAX_SCANS),
    "noisy JPEG": file(Image.effect_noise((512, 512), 100), "JPEG", quality=100),
    "WebP": WEBP,
    "WebP with EXIF": file(make_image(), "WEBP", exif=EXIF),
    "WebP with anything behind": WEBP + webp_chunk(b"EXIF", bytes(2 * MAX_METADATA)),
}


@pytest.mark.parametrize("content", HONEST.values(), ids=HONEST.keys())
def test_honest_files_are_decoded(content: bytes) -> None:
    assert find_problem(content, MAX_METADATA) is None
    assert decode_images(content, None, LIMITS, size=(64, 64), use_alpha_as_mask=False).mode == "image"


@given(st.sampled_from([b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBP"]), st.binary(max_size=200))
def test_any_structure_is_examined_to_its_end(signature: bytes, content: bytes) -> None:
    assert find_problem(signature + content, 1 << 40) is None


def test_metadata_limit_is_inclusive() -> None:
    content = png_with(chunk(b"tEXt", bytes(1000)))
    assert find_problem(content, 1000) is None
    assert find_problem(content, 999) is not None


def test_thin_image_within_the_limits_takes_little_memory() -> None:
    limits = msgspec.structs.replace(LIMITS, max_source_side=16_384)
    with Image.open(io.BytesIO(png_with(b"", 16_384, 1))) as image:
        assert image.size == (16_384, 1)
    sources = decode_images(png_with(b"", 16_384, 1), None, limits, size=(64, 64), use_alpha_as_mask=False)
    assert (sources.width, sources.height) == (64, 64)
