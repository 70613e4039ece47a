"""The messages between the balancer and its decoder processes, over a pair of pipes.

A message is its length (4 bytes, big-endian) and MessagePack. The module imports little, so that a decoder is small.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Literal

import msgspec

Size = tuple[int, int]

#: The length in front of each message.
HEADER = struct.Struct(">I")


class ImageLimits(msgspec.Struct, frozen=True):
    """Limits of source images, and of the size that is chosen for the generated image."""

    #: Pixels, pixels of the longer side, and bytes of EXIF, ICC profile, XMP and texts of a file.
    max_source_pixels: int
    max_source_side: int
    max_metadata_bytes: int
    #: Of the generated image.
    max_pixels: int
    min_side: int


class DecodeRequest(msgspec.Struct, frozen=True):
    """Source images as files. `size` is that of the generated image; None lets the image determine it."""

    image: bytes
    mask: bytes | None
    limits: ImageLimits
    size: Size | None
    use_alpha_as_mask: bool
    #: The decoder is killed after this much CPU time.
    cpu_limit_s: float


class SourceImages(msgspec.Struct, frozen=True, tag=True):
    """A worker's input: `width * height * 3` bytes of RGB; for inpainting also a mask of `width * height` bytes."""

    width: int
    height: int
    frames: tuple[bytes, ...]

    @property
    def mode(self) -> Literal["image", "inpaint"]:
        return "image" if len(self.frames) == 1 else "inpaint"


class RejectedImage(msgspec.Struct, frozen=True, tag=True):
    """The file of `param` cannot be used; `reason` is for the client."""

    param: str
    reason: str


DecodeResult = SourceImages | RejectedImage

_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(DecodeRequest)
_result_decoder = msgspec.msgpack.Decoder[DecodeResult](DecodeResult)


def encode(message: DecodeRequest | DecodeResult) -> tuple[bytes, bytes]:
    """The length of the message, and the message, which may be large."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)), body


def read_request(stream: BinaryIO) -> DecodeRequest | None:
    """The next request; None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    return _request_decoder.decode(stream.read(*HEADER.unpack(header)))


def decode_result(body: bytes) -> DecodeResult:
    """The result without its length. Raises `ValueError` for anything else, and for frames of the wrong size."""
    result: DecodeResult = _result_decoder.decode(body)
    if isinstance(result, SourceImages):
        pixels = result.width * result.height
        if [len(frame) for frame in result.frames] not in ([3 * pixels], [3 * pixels, pixels]):
            raise ValueError("frames of the wrong size")
    return result


def max_result_bytes(limits: ImageLimits, size: Size | None) -> int:
    """Above this, a message is no valid result."""
    return 4 * output_pixels(limits, size) + (64 << 10)


def output_pixels(limits: ImageLimits, size: Size | None) -> int:
    """Number of pixels of the result, at most."""
    return limits.max_pixels if size is None else size[0] * size[1]
