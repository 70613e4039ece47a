"""Source images: decoding of every format, and rejection of every broken file."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from configs.settings import Limits
from loadbalancer.generation.source_images import Size, SourceImages, decode_data_url, decode_images, fit_size
from loadbalancer.schema.errors import InvalidRequest
from tests.support.images import animated, bomb, data_url, file, half, make_image, png

LIMITS = Limits(max_pixels=128 * 128, min_side=32, max_source_pixels=200 * 200)


def read(
    image: bytes,
    mask: bytes | None = None,
    *,
    size: Size | None = None,
    use_alpha_as_mask: bool = True,
    limits: Limits = LIMITS,
) -> SourceImages:
    return decode_images(image, mask, limits, size=size, use_alpha_as_mask=use_alpha_as_mask)


def image_of(sources: SourceImages) -> Image.Image:
    return Image.frombytes("RGB", (sources.width, sources.height), sources.frames[0])


def apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any pixel."""
    return max(ImageChops.difference(one, other).tobytes())


def grey(value: int, mode: str) -> Image.Image:
    return Image.new(mode, (64, 64), value)


@pytest.mark.parametrize(
    ("content", "expected", "tolerance"),
    [
        (png(), make_image(), 0),
        (png(mode="RGBA"), make_image(), 0),
        (png(mode="L"), make_image(mode="L").convert("RGB"), 0),
        (png(mode="LA"), make_image(mode="L").convert("RGB"), 0),
        (png(mode="1"), make_image(mode="1").convert("RGB"), 0),
        (png(mode="P"), make_image(mode="P").convert("RGB"), 0),
        (file(grey(0x8000, "I;16")), Image.new("RGB", (64, 64), (128, 128, 128)), 0),
        (file(make_image(), "JPEG", quality=95), make_image(), 24),
        (file(make_image(mode="L"), "JPEG", quality=95), make_image(mode="L").convert("RGB"), 12),
        (file(make_image(mode="CMYK"), "JPEG", quality=95), make_image(), 32),
        (file(make_image(), "WEBP", lossless=True), make_image(), 0),
        (file(make_image(mode="RGBA"), "WEBP", lossless=True), make_image(), 0),
        (file(make_image(), "PNG", transparency=(1, 2, 3)), make_image(), 0),
    ],
    ids=[
        "rgb",
        "rgba",
        "l",
        "la",
        "1",
        "p",
        "16 bit",
        "jpeg",
        "jpeg l",
        "jpeg cmyk",
        "webp",
        "webp rgba",
        "key colour",
    ],
)
def test_all_formats_decode_to_the_same_pixels(content: bytes, expected: Image.Image, tolerance: int) -> None:
    sources = read(content)
    assert (sources.width, sources.height, sources.mode) == (64, 64, "image")
    assert apart(image_of(sources), expected) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file(make_image(64, 96), kind, exif=exif, **{"lossless": True} if kind == "WEBP" else {"quality": 100})
    upright = make_image(64, 96).transpose(turns[orientation]) if orientation in turns else make_image(64, 96)
    assert apart(image_of(read(content)), upright) <= (12 if kind == "JPEG" else 0)


def test_transparent_image_is_put_on_white() -> None:
    flat = image_of(read(file(half("RGBA").convert("RGBA")), use_alpha_as_mask=False))
    assert flat.getpixel((5, 5)) == (255, 255, 255)
    black = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    assert image_of(read(file(black), use_alpha_as_mask=False)).getextrema() == ((255, 255),) * 3


# ---- masks


@pytest.mark.parametrize(
    ("image", "mask", "left_is_new"),
    [
        (png(), file(half("L")), False),
        (png(), file(half("L").convert("RGB")), False),
        (png(), file(half("L").convert("1")), False),
        (png(), file(half("L"), "JPEG"), False),
        (png(), file(half("RGBA")), True),
        (png(), file(half("LA")), True),
        (png(), file(half("RGBA"), "WEBP", lossless=True), True),
        (file(half("RGBA")), None, True),
        (file(half("RGBA")), file(half("L")), False),  # a mask counts for more than the picture's own alpha
    ],
    ids=["l", "rgb", "1", "jpeg", "rgba", "la", "webp", "the picture's own alpha", "both"],
)
def test_mask_marks_transparent_or_white_area(image: bytes, mask: bytes | None, left_is_new: bool) -> None:
    sources = read(image, mask)
    assert sources.mode == "inpaint"
    area = Image.frombytes("L", (64, 64), sources.frames[1])
    new, kept = (5, 60) if left_is_new else (60, 5)
    assert area.getpixel((new, 30)) == pytest.approx(255, abs=3)
    assert area.getpixel((kept, 30)) == pytest.approx(0, abs=3)


@pytest.mark.parametrize(("image", "use_alpha_as_mask"), [(png(mode="RGBA"), True), (file(half("RGBA")), False)])
def test_image_without_mask_has_mode_image(image: bytes, use_alpha_as_mask: bool) -> None:
    """The image is opaque, or its alpha channel is not used as a mask."""
    assert read(image, use_alpha_as_mask=use_alpha_as_mask).mode == "image"


@pytest.mark.parametrize(
    ("mask", "fragment"),
    [
        (png(64, 72), "it is 64x72 and the image 64x64"),
        (file(Image.new("L", (64, 64), 0)), "it marks nothing"),
        (file(Image.new("L", (64, 64), 127)), "it marks nothing"),
        (file(Image.new("RGBA", (64, 64), "white")), "it marks nothing"),
        (b"", "the file is empty"),
        (bomb(201, 200), "201x200 is 40200 pixels; at most 40000"),
    ],
)
def test_invalid_mask_is_rejected(mask: bytes, fragment: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid image in 'mask'") as rejected:
        read(png(), mask)
    assert fragment in rejected.value.message
    assert rejected.value.param == "mask"


# ---- sizes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (64, 64)),
        ((100, 60), (96, 64)),
        ((128, 128), (128, 128)),
        ((200, 200), (128, 128)),
        ((4000, 3000), (144, 112)),
        ((3000, 4000), (112, 144)),
        ((10, 10), (32, 32)),
        ((8, 16), (32, 64)),
        ((512, 32), (512, 32)),
    ],
)
def test_fit_size_keeps_size_within_limits(size: Size, expected: Size) -> None:
    assert fit_size(size, LIMITS) == expected


@pytest.mark.parametrize("size", [(2000, 100), (1, 17), (513, 32)])
def test_fit_size_rejects_extreme_aspect_ratio(size: Size) -> None:
    with pytest.raises(InvalidRequest, match="choose one with 'size'") as rejected:
        fit_size(size, LIMITS)
    assert rejected.value.param == "image"


@given(
    size=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    least=st.integers(8, 128),
    most=st.integers(128 * 128, 4096 * 4096),
)
def test_fit_size_is_within_limits_for_any_size(size: Size, least: int, most: int) -> None:
    limits = Limits(min_side=least, max_pixels=most)
    try:
        width, height = fit_size(size, limits)
    except InvalidRequest:
        assert max(size) / min(size) > most / (least + 8) ** 2
        return
    assert width % 8 == height % 8 == 0
    assert min(width, height) >= least
    assert width * height <= most
    if max(size) <= 8 * min(size) and min(width, height) >= 2 * least and most > 64 * least * least:
        assert width / height == pytest.approx(size[0] / size[1], rel=0.3)


def test_explicit_size_scales_image_and_mask() -> None:
    sources = read(png(), file(half("L")), size=(96, 32))
    assert [len(frame) for frame in sources.frames] == [96 * 32 * 3, 96 * 32]
    scaled = make_image().resize((96, 32), Image.Resampling.LANCZOS)
    assert apart(image_of(sources), scaled) == 0
    assert sources.frames[1][0] == 0
    assert sources.frames[1][95] == 255


# ---- bad files

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect width="64" height="64"/></svg>'
BAD = [
    (b"", "the file is empty"),
    (b"not a picture", "not a PNG, JPEG or WebP"),
    (SVG, "not a PNG, JPEG or WebP"),
    (file(make_image(), "GIF"), "not a PNG, JPEG or WebP"),
    (file(make_image(), "TIFF"), "not a PNG, JPEG or WebP"),
    (file(make_image(), "BMP"), "not a PNG, JPEG or WebP"),
    (file(make_image(), "PPM"), "not a PNG, JPEG or WebP"),
    (bomb(50_000, 50_000), "50000x50000 is 2500000000 pixels; at most 40000 are allowed"),
    (bomb(2**31 - 1, 2**31 - 1), "pixels; at most 40000 are allowed"),
    (bomb(201, 200), "201x200 is 40200 pixels"),
    (bomb(200, 200), "broken or cut short"),
    (png()[:200], "broken or cut short"),
    (png()[:20], "broken or cut short"),
    (file(make_image(), "JPEG")[:400], "broken"),
    (file(make_image(), "JPEG")[:-40], "broken or cut short"),
    (file(make_image(), "WEBP")[:-40], "broken"),
    (animated("PNG"), "it is animated"),
    (animated("WEBP"), "it is animated"),
]


@pytest.mark.parametrize(("content", "fragment"), BAD, ids=range(len(BAD)))
def test_bad_file_is_rejected_with_reason(content: bytes, fragment: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid image in 'image'") as rejected:
        read(content)
    assert fragment in rejected.value.message
    assert (rejected.value.param, rejected.value.code, rejected.value.status) == ("image", "invalid_image", 400)


@given(content=st.binary(max_size=300))
def test_random_bytes_are_rejected(content: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(content)


@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    mode=st.sampled_from(["RGB", "L", "RGBA"]),
    seed=st.integers(0, 2**32),
    flips=st.integers(0, 8),
    kept=st.floats(0, 1),
)
def test_damaged_file_is_rejected_or_decoded(kind: str, mode: str, seed: int, flips: int, kept: float) -> None:
    chance = random.Random(seed)
    content = bytearray(file(make_image(mode="RGB" if kind == "JPEG" and mode == "RGBA" else mode), kind))
    for _ in range(flips):
        content[chance.randrange(len(content))] = chance.randrange(256)
    try:
        sources = read(bytes(content[: int(len(content) * max(kept, 0.5))]), size=(32, 32))
    except InvalidRequest:
        return
    assert [len(frame) for frame in sources.frames] in ([32 * 32 * 3], [32 * 32 * 3, 32 * 32])


# ---- data URLs


@pytest.mark.parametrize(
    "url",
    [
        data_url(b"\x00\xff"),
        data_url(b"\x00\xff", "image/jpeg"),
        data_url(b"\x00\xff", "text/plain;charset=utf-8"),
        data_url(b"\x00\xff", ""),
        data_url(b"\x00\xff").replace("data:", "DATA:"),
    ],
)
def test_data_urls(url: str) -> None:
    assert decode_data_url("image", url) == b"\x00\xff"


@pytest.mark.parametrize(
    ("url", "fragment"),
    [
        ("", "Must be a data URL"),
        ("data:image/png;base64", "Must be a data URL"),
        ("data:image/png,abc", "Must be a data URL"),
        ("http://127.0.0.1/picture.png", "other addresses are not fetched"),
        ("file:///etc/passwd", "other addresses are not fetched"),
        ("data:" + "x" * 300 + ";base64,AAAA", "Must be a data URL"),
        ("data:image/png;base64,A", "is not base64"),
        ("data:image/png;base64,AA=A", "is not base64"),
        ("data:image/png;base64,AA\x00A", "is not base64"),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", "is not base64"),
    ],
)
def test_invalid_data_url_is_rejected(url: str, fragment: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        decode_data_url("mask", url)
    assert fragment in rejected.value.message
    assert rejected.value.param == "mask"


@pytest.mark.parametrize("text", ["AP-_Zg==", "AP-_Zg", "AP+/Zg", "AP+/\r\nZg==\n", " AP+/ Zg==", "AP+/Zg===="])
def test_usual_spellings_of_base64_are_read(text: str) -> None:
    assert decode_data_url("image", f"data:image/png;base64,{text}") == b"\x00\xff\xbff"


@given(content=st.binary())
def test_data_url_round_trip(content: bytes) -> None:
    assert decode_data_url("image", data_url(content)) == content


@given(text=st.text())
def test_random_data_url_text_is_decoded_or_rejected(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert len(decode_data_url("image", f"data:;base64,{text}")) <= len(text)
