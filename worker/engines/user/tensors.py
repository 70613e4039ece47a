"""Arrays as raw frames: elements in C order, little-endian. Never pickle.

Strings have the dtype `BYTES`, as in the Open Inference Protocol: each element is its length in four bytes, then its
bytes. numpy is imported only when an array is used, because an engine's environment may lack it.
"""

from __future__ import annotations

import math
import struct
import sys
from typing import TYPE_CHECKING, Any

from wire.inputs import Part

if TYPE_CHECKING:
    import numpy as np

#: numpy's names of the element types that a frame may have.
DTYPES = frozenset(
    (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
)
BYTES = "BYTES"
_MAX_DIMENSIONS = 32
_LENGTH = struct.Struct("<I")


def is_array(value: object) -> bool:
    """Return whether the value is a numpy array. Does not import numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_scalar(value: object) -> bool:
    """Return whether the value is a number of numpy. Does not import numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def is_tensor(value: object) -> bool:
    """Return whether the value is a torch tensor. Does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(value: Any) -> np.ndarray:
    """Return an array or torch tensor as an array in main memory. Raises `ValueError` if numpy has no such type."""
    if not is_tensor(value):
        array: np.ndarray = value
        return array
    try:
        array = value.detach().cpu().numpy()
    except TypeError:
        raise ValueError(f"numpy has no {value.dtype}; convert the tensor, such as with .float()") from None
    return array


def decode_array(part: Part, frame: bytes) -> np.ndarray:
    """Return a read-only view of the frame, or an array of `bytes` objects for strings. Raises `ValueError`."""
    import numpy

    if len(part.shape) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor has at most {_MAX_DIMENSIONS} dimensions, not {len(part.shape)}")
    size = math.prod(part.shape)
    if part.dtype == BYTES:
        return _decode_strings(frame, size).reshape(part.shape)
    if part.dtype not in DTYPES:
        raise ValueError(f"no tensors of {part.dtype!r}; allowed: {', '.join(sorted(DTYPES))}, {BYTES}")
    dtype = numpy.dtype(part.dtype).newbyteorder("<")
    if len(frame) != size * dtype.itemsize:
        shape = "x".join(map(str, part.shape)) or "one element"
        raise ValueError(f"{shape} of {part.dtype} takes {size * dtype.itemsize} bytes, got {len(frame)}")
    return numpy.frombuffer(frame, dtype).reshape(part.shape)


def encode_array(array: np.ndarray, name: str = "") -> tuple[Part, bytes]:
    """Raises `ValueError` for elements that no frame can have, such as objects."""
    dtype = array.dtype.name
    if array.dtype.kind in "USO":
        frame, dtype = _encode_strings(array), BYTES
    elif dtype in DTYPES:
        frame = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    else:
        raise ValueError(f"an array of {dtype} cannot be sent; allowed: {', '.join(sorted(DTYPES))} and strings")
    return Part("application/octet-stream", name, dtype, array.shape), frame


def array_from_lists(value: object, dtype: str = "") -> np.ndarray:
    """Return the array that nested lists of JSON describe. Raises `ValueError` for ragged lists and other values."""
    import numpy

    try:
        array = numpy.asarray(value)
        is_number = array.dtype.kind in "biuf"
        is_whole = array.dtype.kind != "f" or not array.size or not dtype or numpy.dtype(dtype).kind not in "iu"
        if is_number and is_whole:
            return numpy.asarray(value, dtype) if dtype else array
    except (TypeError, ValueError, OverflowError) as error:
        reason = str(error).partition(". ")[0]
        raise ValueError(f"no array of {dtype or 'numbers'} can be made of it: {reason}") from None
    raise ValueError("must be nested lists of whole numbers" if is_number else "must be nested lists of numbers")


def plain_values(array: np.ndarray) -> Any:
    """Return nested lists, with text for strings."""
    if array.dtype.kind in "SO":
        texts = [each.decode() if isinstance(each, bytes) else each for each in array.ravel().tolist()]
        import numpy

        return numpy.array(texts, dtype=object).reshape(array.shape).tolist()
    return array.tolist()


def _decode_strings(frame: bytes, size: int) -> np.ndarray:
    import numpy

    if size * _LENGTH.size > len(frame):
        raise ValueError(f"{size} strings take at least {size * _LENGTH.size} bytes, got {len(frame)}")
    array = numpy.empty(size, dtype=object)
    start = 0
    for index in range(size):
        if start + _LENGTH.size > len(frame):
            raise ValueError(f"the data of string {index} is missing")
        [length] = _LENGTH.unpack_from(frame, start)
        start += _LENGTH.size
        if start + length > len(frame):
            raise ValueError(f"the data of string {index} is cut short")
        array[index] = frame[start : start + length]
        start += length
    if start != len(frame):
        raise ValueError(f"{len(frame) - start} bytes are left after the last string")
    return array


def _encode_strings(array: np.ndarray) -> bytes:
    encoded = bytearray()
    for value in array.ravel().tolist():
        if not isinstance(value, str | bytes):
            raise ValueError(f"an array of objects may hold text and bytes only, not {type(value).__name__}")
        data = value.encode() if isinstance(value, str) else value
        encoded += _LENGTH.pack(len(data)) + data
    return bytes(encoded)
