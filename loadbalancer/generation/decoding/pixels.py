"""Source images: from the bytes of a client's file to raw pixels at the size of the generated image.

Every error in a file is found here, before anything is queued. Structure and size are checked before anything is
decoded. This runs in decoder processes.
"""

from __future__ import annotations

import io
import math
from typing import NoReturn

# The plugins of `FORMATS`: without these imports Pillow would import all that it has.
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError, WebPImagePlugin

from loadbalancer.generation.decoding.messages import ImageLimits, Size, SourceImages
from wire.image_structure import find_problem

#: Detected from the content; names and declared types are ignored.
FORMATS = tuple(
    plugin.format
    for plugin in (PngImagePlugin.PngImageFile, JpegImagePlugin.JpegImageFile, WebPImagePlugin.WebPImageFile)
)
#: Mask pixels of at least this value are redrawn.
_MASK_THRESHOLD = 128

# Pillow's own limit is per process. Ours is per model, and is checked before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


class ImageRejected(Exception):
    """The file of `param` cannot be used, for `reason`."""

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(f"{param}: {reason}")
        self.param = param
        self.reason = reason


def decode_images(
    image: bytes, mask: bytes | None, limits: ImageLimits, *, size: Size | None, use_alpha_as_mask: bool
) -> SourceImages:
    """The files as pixels of `size`, by default the image's own size within the limits.

    A mask with an alpha channel marks its transparent area, a mask without one its white area. Without a mask,
    `use_alpha_as_mask` takes the transparent area of the image. Raises `ImageRejected`.
    """
    decoded = _decode("image", image, limits)
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


def fit_size(size: Size, limits: ImageLimits) -> Size:
    """The nearest size within the limits: multiples of 8, of the same aspect ratio.

    Raises `ImageRejected` if no size within the limits has this aspect ratio.
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


def _decode(param: str, data: bytes, limits: ImageLimits) -> Image.Image:
    """The image upright, as RGB, or as RGBA if it has transparency."""
    if not data:
        _reject(param, "the file is empty")
    problem = find_problem(data, limits.max_metadata_bytes)
    if problem is not None:
        _reject(param, problem)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(param, image, limits)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except ImageRejected:
        raise
    except MemoryError:
        _reject(param, "decoding it takes too much memory")
    except UnidentifiedImageError:
        _reject(param, "it is not a PNG, JPEG or WebP file, or it is broken")
    except Exception:  # decoders raise many types for broken files
        _reject(param, "the file is broken or cut short")


def _check_header(param: str, image: Image.Image, limits: ImageLimits) -> None:
    """Check size and frames from the header, before pixels are decoded."""
    width, height = image.size
    pixels, max_side = limits.max_source_pixels, limits.max_source_side
    if width * height > pixels:
        _reject(param, f"{width}x{height} is {width * height} pixels; at most {pixels} are allowed")
    if max(width, height) > max_side:
        _reject(param, f"it is {width}x{height}; a side of at most {max_side} pixels is allowed")
    # The further frames of a JPEG are previews of the first.
    if image.format != "JPEG" and image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        _reject(param, "it is animated; send a single frame")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip instead of scale
        image = image.point(lambda value: value / 256).convert("L")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _masked_area(data: bytes, size: Size, limits: ImageLimits) -> Image.Image:
    """The mask for an image of this size: 255 where it is to be redrawn."""
    mask = _decode("mask", data, limits)
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
    raise ImageRejected(param, reason)
