"""Source images: from the bytes of a client's file to raw pixels at the size of the generated image.

Every error in a file is found here, before anything is queued. The size is checked before anything is decoded.
Decoding is slow, so that it is called in a thread (`api.uploads`).
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Literal, NoReturn

from PIL import Image, ImageOps, UnidentifiedImageError

from configs.settings import Limits
from loadbalancer.schema.errors import InvalidRequest

#: Detected from the content; names and declared types are ignored.
FORMATS = ("PNG", "JPEG", "WEBP")
#: Mask pixels of at least this value are redrawn.
_MASK_THRESHOLD = 128

# Pillow's own limit is per process. Ours is per model, and is checked before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

_URL_SAFE = bytes.maketrans(b"-_", b"+/")

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class SourceImages:
    """A worker's input: `width * height * 3` bytes of RGB; for inpainting also a mask of `width * height` bytes."""

    width: int
    height: int
    frames: tuple[bytes, ...]

    @property
    def mode(self) -> Literal["image", "inpaint"]:
        return "image" if len(self.frames) == 1 else "inpaint"


def decode_images(
    image: bytes, mask: bytes | None, limits: Limits, *, size: Size | None, use_alpha_as_mask: bool
) -> SourceImages:
    """The files as pixels of `size`, by default the image's own size within the limits.

    A mask with an alpha channel marks its transparent area, a mask without one its white area. Without a mask,
    `use_alpha_as_mask` takes the transparent area of the image. Raises `InvalidRequest`.
    """
    decoded = _decode("image", image, limits.max_source_pixels)
    original_size = decoded.size
    scaled = decoded.resize(size or fit_size(original_size, limits), Image.Resampling.LANCZOS)
    del decoded  # it may be large
    area = None
    if mask is not None:
        area = _masked_area(mask, original_size, limits).resize(scaled.size, Image.Resampling.BILINEAR)
        if not _has_marks(area):
            _reject("mask", "it marks nothing: make the area to redraw transparent (or white, in a mask without alpha)")
    elif use_alpha_as_mask and scaled.mode == "RGBA":
        transparent = ImageOps.invert(scaled.getchannel("A"))
        area = transparent if _has_marks(transparent) else None
    pixels = _on_white(scaled).tobytes()
    return SourceImages(scaled.width, scaled.height, (pixels,) if area is None else (pixels, area.tobytes()))


def fit_size(size: Size, limits: Limits) -> Size:
    """The nearest size within the limits: multiples of 8, of the same aspect ratio.

    Raises `InvalidRequest` if no size within the limits has this aspect ratio.
    """
    width, height = size
    min_scale = limits.min_side / min(size)
    if min_scale**2 * width * height > limits.max_pixels:
        text = f"no size within the model's limits has the aspect ratio of {width}x{height}; choose one with 'size'"
        _reject("image", text)
    scale = max(min(1.0, math.sqrt(limits.max_pixels / (width * height))), min_scale)
    min_blocks = math.ceil(limits.min_side / 8)
    columns, rows = (max(round(side * scale / 8), min_blocks) for side in size)
    max_blocks = limits.max_pixels // 64
    if columns * rows > max_blocks:  # by rounding
        if columns > rows:
            columns = min(columns, max_blocks // rows)
        else:
            rows = min(rows, max_blocks // columns)
    return columns * 8, rows * 8


def decode_data_url(param: str, text: str) -> bytes:
    """The file in a `data:` URL. Raises `InvalidRequest`."""
    head = text[:200].partition(",")[0]
    if not head.lower().startswith("data:") or not head.lower().endswith(";base64") or len(head) == len(text):
        _reject(param, "Must be a data URL (data:image/png;base64,...); other addresses are not fetched")
    try:
        return _from_base64(text[len(head) + 1 :])
    except ValueError:  # not base64, or not ASCII
        _reject(param, "the text after 'base64,' is not base64")


def _from_base64(text: str) -> bytes:
    """Decode standard or URL-safe base64, with or without line breaks and padding. Raises `ValueError`."""
    encoded = text.encode("ascii").translate(_URL_SAFE, b" \t\r\n").rstrip(b"=")
    return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)


def _decode(param: str, data: bytes, max_pixels: int) -> Image.Image:
    """The image upright, as RGB, or as RGBA if it has transparency."""
    if not data:
        _reject(param, "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(param, image, max_pixels)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except InvalidRequest:
        raise
    except UnidentifiedImageError:
        _reject(param, "it is not a PNG, JPEG or WebP file, or it is broken")
    except Exception:  # decoders raise many types for broken files
        _reject(param, "the file is broken or cut short")


def _check_header(param: str, image: Image.Image, max_pixels: int) -> None:
    """Check size and frames from the header, before pixels are decoded."""
    width, height = image.size
    if width * height > max_pixels:
        _reject(param, f"{width}x{height} is {width * height} pixels; at most {max_pixels} are allowed")
    # The further frames of a JPEG are previews of the first.
    if image.format != "JPEG" and image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        _reject(param, "it is animated; send a single frame")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip instead of scale
        image = image.point(lambda value: value / 256).convert("L")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _masked_area(data: bytes, size: Size, limits: Limits) -> Image.Image:
    """The mask for an image of this size: 255 where it is to be redrawn."""
    mask = _decode("mask", data, limits.max_source_pixels)
    if mask.size != size:
        text = f"it is {mask.width}x{mask.height} and the image {size[0]}x{size[1]}; their sizes must be equal"
        _reject("mask", text)
    return ImageOps.invert(mask.getchannel("A")) if mask.mode == "RGBA" else mask.convert("L")


def _has_marks(area: Image.Image) -> bool:
    _, maximum = area.getextrema()
    return isinstance(maximum, int | float) and maximum >= _MASK_THRESHOLD


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    background = Image.new("RGB", image.size, "white")
    background.paste(image, mask=image.getchannel("A"))
    return background


def _reject(param: str, reason: str) -> NoReturn:
    raise InvalidRequest(f"Invalid image in '{param}': {reason}.", param=param, code="invalid_image")
