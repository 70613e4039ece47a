"""Source pictures: from the bytes of a client's file to raw pixels at the size of the image that is to be drawn.

Everything that can be wrong with a picture is found here, before anything is queued, and its size before anything is
decoded. Rule: no event loop in here. Decoding takes long and is called in a thread (`routes.uploads`).
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

#: Told from the content; names and declared types are not looked at.
FORMATS = ("PNG", "JPEG", "WEBP")
#: From this value on, a pixel of a mask is to be drawn anew.
_MARKED = 128
_DATA_URL = "Must be a data URL (data:image/png;base64,...); other addresses are not fetched"

# Pillow's own bound is one for the whole process; ours is the model's, and is checked before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class SourceImages:
    """What a worker gets: `width * height * 3` bytes of RGB; for inpainting also a mask of `width * height` bytes."""

    width: int
    height: int
    frames: tuple[bytes, ...]

    @property
    def mode(self) -> Literal["image", "inpaint"]:
        """What the image is drawn from."""
        return "image" if len(self.frames) == 1 else "inpaint"


def decode_images(
    image: bytes, mask: bytes | None, limits: Limits, *, size: Size | None, use_alpha_as_mask: bool
) -> SourceImages:
    """The files as pixels of `size`, or else of the picture's own size within the limits.

    A mask with an alpha channel marks what it leaves transparent, one without marks what is white. Without a mask,
    `use_alpha_as_mask` takes the picture's own transparent area for it. Raises `InvalidRequest`.
    """
    own_size, scaled = _scaled(image, limits, size)
    area = None
    if mask is not None:
        area = _area(mask, own_size, limits).resize(scaled.size, Image.Resampling.BILINEAR)
        if not _marks(area):
            _refuse(
                "mask", "it marks nothing: leave transparent (or, in a mask without alpha, paint white) what to draw"
            )
    elif use_alpha_as_mask and scaled.mode == "RGBA":
        hidden = ImageOps.invert(scaled.getchannel("A"))
        area = hidden if _marks(hidden) else None
    pixels = _flat(scaled).tobytes()
    return SourceImages(scaled.width, scaled.height, (pixels,) if area is None else (pixels, area.tobytes()))


def fit_size(size: Size, limits: Limits) -> Size:
    """The size nearest to a picture's own that the limits allow: multiples of 8, of its shape.

    Raises `InvalidRequest` where its shape is too long for them.
    """
    width, height = size
    enough = limits.min_side / min(size)
    if enough**2 * width * height > limits.max_pixels:
        _refuse("image", f"no size within the model's limits has the shape of {width}x{height}; choose one with 'size'")
    scale = max(min(1.0, math.sqrt(limits.max_pixels / (width * height))), enough)
    least = math.ceil(limits.min_side / 8)
    columns, rows = (max(round(side * scale / 8), least) for side in size)
    most = limits.max_pixels // 64
    if columns * rows > most:  # rounding went past it
        columns, rows = (min(columns, most // rows), rows) if columns > rows else (columns, min(rows, most // columns))
    return columns * 8, rows * 8


def decode_data_url(param: str, text: str) -> bytes:
    """The file in a `data:` URL. Raises `InvalidRequest`."""
    head = text[:200].partition(",")[0]
    if not head.lower().startswith("data:") or not head.lower().endswith(";base64") or len(head) == len(text):
        _refuse(param, _DATA_URL)
    try:
        return base64.b64decode(text[len(head) + 1 :], validate=True)
    except ValueError:  # not base64, or not even ASCII
        _refuse(param, "what follows 'base64,' is not base64")


def _scaled(data: bytes, limits: Limits, size: Size | None) -> tuple[Size, Image.Image]:
    """The picture's own size, and the picture at the wanted one: the large one is not kept."""
    picture = _decode("image", data, limits.max_source_pixels)
    target = size or fit_size(picture.size, limits)
    return picture.size, picture.resize(target, Image.Resampling.LANCZOS)


def _decode(param: str, data: bytes, most: int) -> Image.Image:
    """The picture upright, as RGB, or as RGBA where some of it may be transparent."""
    if not data:
        _refuse(param, "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check(param, image, most)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _plain(image)
    except InvalidRequest:
        raise
    except UnidentifiedImageError:
        _refuse(param, "it is no PNG, JPEG or WebP file, or a broken one")
    except Exception:  # a decoder meets broken files with whatever error comes up first
        _refuse(param, "the file is broken or cut short")


def _check(param: str, image: Image.Image, most: int) -> None:
    """What the header of the file tells, before its pixels are decoded."""
    width, height = image.size
    if width * height > most:
        _refuse(param, f"{width}x{height} is {width * height} pixels; at most {most} are allowed")
    # A JPEG of several frames is a photograph with previews of it, whose first frame is the picture.
    if image.format != "JPEG" and image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        _refuse(param, "it is animated; send a single frame")


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip instead of scale
        image = image.point(lambda value: value / 256).convert("L")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _area(data: bytes, size: Size, limits: Limits) -> Image.Image:
    """What the mask marks: 255 where the picture of this size is to be drawn anew."""
    mask = _decode("mask", data, limits.max_source_pixels)
    if mask.size != size:
        text = f"it is {mask.width}x{mask.height} and the picture {size[0]}x{size[1]}; their sizes must be equal"
        _refuse("mask", text)
    return ImageOps.invert(mask.getchannel("A")) if mask.mode == "RGBA" else mask.convert("L")


def _marks(area: Image.Image) -> bool:
    _, most = area.getextrema()
    return isinstance(most, int | float) and most >= _MARKED


def _flat(picture: Image.Image) -> Image.Image:
    """The picture on white."""
    if picture.mode != "RGBA":
        return picture
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    return flat


def _refuse(param: str, why: str) -> NoReturn:
    raise InvalidRequest(f"Invalid picture in '{param}': {why}.", param=param, code="invalid_image")
