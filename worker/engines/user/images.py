"""Images as values: bytes of a client to a `PIL.Image.Image`, within bounds, and back to PNG."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, NamedTuple

from wire.image_structure import find_problem

if TYPE_CHECKING:
    from PIL import Image

#: Detected from the content.
_FORMATS = ("PNG", "JPEG", "WEBP")
_PNG_LEVEL = 1
#: Begins a scan of a JPEG, each of which goes over all pixels.
_SCAN = b"\xff\xda"
#: Scans of the largest accepted image. Encoders write about 10.
_MAX_FULL_SCANS = 12


class ImageBounds(NamedTuple):
    """Largest accepted image, checked before a pixel is decoded."""

    pixels: int
    side: int
    #: EXIF, ICC profile, XMP and texts.
    metadata_bytes: int = 4 << 20


class _OutOfBounds(ValueError):
    """The header of an image says that it is too large."""


def decode_image(data: bytes, bounds: ImageBounds) -> Image.Image:
    """Return the decoded image, upright. Raises `ValueError` for other files, broken ones and images out of bounds."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    problem = find_problem(data, bounds.metadata_bytes)
    if problem is not None:
        raise ValueError(f"the image cannot be used: {problem}")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > bounds.pixels or max(width, height) > bounds.side:
                raise _OutOfBounds(
                    f"the image has {width}x{height} pixels; at most {bounds.pixels} pixels and {bounds.side} a side "
                    "are allowed"
                )
            if image.format == "JPEG" and data.count(_SCAN) * width * height > _MAX_FULL_SCANS * bounds.pixels:
                raise _OutOfBounds("the image has too many scans for its size")
            image.load()
            upright = ImageOps.exif_transpose(image)
            return image.copy() if upright is None else upright
    except _OutOfBounds:
        raise
    except UnidentifiedImageError:
        raise ValueError("the image is not a PNG, JPEG or WebP file, or it is broken") from None
    except (MemoryError, Image.DecompressionBombError):
        raise ValueError("the image is too large to be decoded") from None
    except Exception:  # decoders raise many types for broken files
        raise ValueError("the image is broken or cut short") from None


def encode_png(image: Image.Image) -> bytes:
    """Modes without a PNG equivalent become RGB."""
    out = io.BytesIO()
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
        image = image.convert("RGB")
    image.save(out, "PNG", compress_level=_PNG_LEVEL)
    return out.getvalue()


def is_image(value: object) -> bool:
    """Return whether the value is an image of Pillow. Does not import Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)
