"""Source images: decoding of every format, and rejection of every broken file."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from loadbalancer.generation.decoding.messages import ImageLimits, Size, SourceImages
from loadbalancer.generation.decoding.pixels import ImageRejected, decode_images, fit_size
from tests.support.images import animated, bomb, file, half, make_image, png

LIMITS = ImageLimits(
    max_source_pixels=200 * 200, max_source_side=1000, max_metadata_bytes=10_000, max_pixels=128 * 128, min_side=32
)


def read(
    image: bytes,
    mask: bytes | None = None,
    *,
    size: Size | None = None,
    use_alpha_as_mask: bool = True,
    limits: ImageLimits = LIMITS,
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
    with pytest.raises(ImageRejected, match=r"^mask: ") as rejected:
        read(png(), mask)
    assert fragment in rejected.value.reason
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
    with pytest.raises(ImageRejected, match="choose one with 'size'") as rejected:
        fit_size(size, LIMITS)
    assert rejected.value.param == "image"


@given(
    size=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    least=st.integers(8, 128),
    most=st.integers(128 * 128, 4096 * 4096),
)
def test_fit_size_is_within_limits_for_any_size(size: Size, least: int, most: int) -> None:
    limits = msgspec.structs.replace(LIMITS, min_side=least, max_pixels=most)
    try:
        width, height = fit_size(size, limits)
    except ImageRejected:
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
    with pytest.raises(ImageRejected, match=r"^image: ") as rejected:
        read(content)
    assert fragment in rejected.value.reason
    assert rejected.value.param == "image"


@given(content=st.binary(max_size=300))
def test_random_bytes_are_rejected(content: bytes) -> None:
    with pytest.raises(ImageRejected):
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
    except ImageRejected:
        return
    assert [len(frame) for frame in sources.frames] in ([32 * 32 * 3], [32 * 32 * 3, 32 * 32])
