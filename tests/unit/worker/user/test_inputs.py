"""Parts of a call as the value that an engine's annotation describes, and the error that names what is wrong."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from tests.support.images import scan_bomb
from wire.inputs import Part
from worker.engine import TaskError
from worker.engines.user.images import ImageBounds
from worker.engines.user.inputs import InputDecoder
from worker.engines.user.value_types import UnsupportedType

BOUNDS = ImageBounds(pixels=64 * 64, side=100)
JSON = Part()
RAW = Part("application/octet-stream")


class Model(BaseModel):
    text: str
    count: Annotated[int, Field(ge=1)] = 1


class ImageModel(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    image: Image.Image
    scale: float = 1.0


class Tree(BaseModel):
    children: list[Tree]


@dataclasses.dataclass
class TreeRecord:
    children: list[TreeRecord]


class TreeOfBytes(BaseModel):
    data: bytes
    children: list[TreeOfBytes]


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.5


class Pair(BaseModel):
    a: Point
    b: Point


@dataclasses.dataclass
class Sample:
    pixels: NDArray[numpy.float32]
    label: str = "none"


class Fields(TypedDict):
    data: bytes
    name: NotRequired[str]


class Plain(TypedDict):
    text: str
    count: NotRequired[int]


class Struct(msgspec.Struct):
    text: str
    data: bytes = b""


def png(width: int = 4, height: int = 3) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, "PNG")
    return out.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def tensor(array: Any, name: str = "") -> tuple[Part, bytes]:
    array = numpy.asarray(array)
    return Part("application/octet-stream", name, array.dtype.name, array.shape), array.tobytes()


def decode(annotation: Any, *parts: tuple[Part, bytes]) -> Any:
    return InputDecoder(annotation, BOUNDS).decode([part for part, _ in parts], [frame for _, frame in parts])


def decode_json(annotation: Any, value: Any) -> Any:
    return decode(annotation, (JSON, json.dumps(value).encode()))


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Any, {"a": [1, None]}, {"a": [1, None]}),
        (str, "text", "text"),
        (int, 3, 3),
        (float, 3, 3.0),
        (bool, True, True),
        (dict, {"a": 1}, {"a": 1}),
        (list[float], [1, 2.5], [1.0, 2.5]),
        (str | None, None, None),
        (Literal["a", "b"], "b", "b"),
        (Model, {"text": "x"}, Model(text="x")),
        (Point, {"x": 1}, Point(1.0)),
        (Struct, {"text": "x", "data": b64(b"raw")}, Struct("x", b"raw")),
        (bytes, b64(b"raw"), b"raw"),
        (bytes, {"b64": b64(b"raw")}, b"raw"),
        (list[bytes], [b64(b"1"), b64(b"2")], [b"1", b"2"]),
        (Fields, {"data": b64(b"raw")}, {"data": b"raw"}),
        (Plain, {"text": "x"}, {"text": "x"}),
        (list[Plain], [{"text": "x", "count": 2}], [{"text": "x", "count": 2}]),
    ],
)
def test_json_becomes_annotated_type(annotation: Any, value: Any, expected: Any) -> None:
    found = decode_json(annotation, value)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (Model, {"text": 1}, "text: Input should be a valid string"),
        (Model, {"text": "x", "count": 0}, "count: Input should be greater than or equal to 1"),
        (list[int], [1, "x", 3], "1: Input should be a valid integer"),
        (Struct, {"text": 1}, r"text: Expected `str`, got `int`"),
        (bytes, "no base64!", "must be base64"),
        (Image.Image, b64(b"no image"), "not a PNG, JPEG or WebP file"),
        (Image.Image, 5, "must be an image"),
        (Image.Image, b64(png(101, 1)), "101x1 pixels; at most 4096 pixels and 100 a side"),
        (NDArray[numpy.float32], [[1], [2, 3]], "no array of float32"),
        (NDArray[numpy.int64], [1.5], "must be nested lists of whole numbers"),
        (NDArray[numpy.uint8], [256], "no array of uint8 can be made of it"),
        (NDArray[numpy.float32], ["1.5"], "must be nested lists of numbers"),
        (NDArray[numpy.float32], [None], "must be nested lists of numbers"),
        (numpy.ndarray, ["a"], "nested lists of numbers"),
        (numpy.ndarray, {"a": 1}, "must be an array"),
        (Sample, {"pixels": "x"}, "pixels: must be an array"),
        (ImageModel, {"image": "x", "scale": "y"}, "image: must be base64; scale: Input should be a valid number"),
        (Fields, {}, "data: Field required"),
    ],
)
def test_error_names_field(annotation: Any, value: Any, text: str) -> None:
    with pytest.raises(TaskError, match=text) as caught:
        decode_json(annotation, value)
    assert caught.value.kind == "invalid"


@pytest.mark.parametrize("annotation", [Any, Model, Struct, bytes])
@pytest.mark.parametrize("frame", [b"", b"{", b"\xff", b"[" * 10_000])
def test_broken_json_is_invalid(annotation: Any, frame: bytes) -> None:
    with pytest.raises(TaskError) as caught:
        decode(annotation, (JSON, frame))
    assert caught.value.kind == "invalid"


def test_arrays_come_from_lists_and_from_frames() -> None:
    assert decode_json(numpy.ndarray, [[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    found = decode(NDArray[numpy.float32], tensor(numpy.arange(6, dtype="float32").reshape(2, 3)))
    assert (found.dtype, found.shape, found.flags.writeable) == (numpy.float32, (2, 3), False)
    assert decode(NDArray[numpy.float64], tensor(numpy.array([1, 2], "float32"))).dtype == numpy.float64
    with pytest.raises(TaskError, match="must be an array of int8, not of float32"):
        decode(NDArray[numpy.int8], tensor(numpy.array([1], "float32")))


def test_images_come_from_parts_and_from_base64() -> None:
    for found in (
        decode(Image.Image, (Part("image/png"), png())),
        decode(Image.Image, (RAW, png())),
        decode_json(Image.Image, b64(png())),
        decode_json(Image.Image, {"b64": b64(png())}),
        decode_json(Image.Image, "data:image/png;base64," + b64(png())),
        decode_json(ImageModel, {"image": b64(png())}).image,
        decode(ImageModel, (Part("image/png", "image"), png()), (JSON, b'{"scale": 2}')).image,
        decode_json(list[Image.Image], [b64(png())])[0],
    ):
        assert (found.size, found.getpixel((0, 0))) == ((4, 3), (255, 0, 0))


def test_named_parts_fill_fields() -> None:
    sample = decode(Sample, tensor(numpy.array([1, 2], "float32"), "pixels"), (Part("text/plain", "label"), b"seven"))
    assert isinstance(sample, Sample)
    assert (sample.pixels.tolist(), sample.label) == ([1.0, 2.0], "seven")
    assert decode(Fields, (Part("application/octet-stream", "data"), b"raw")) == {"data": b"raw"}
    assert decode(Any, tensor(numpy.array([1], "int8"), "a"), tensor(numpy.array([2], "int8"), "b")).keys() == {
        "a",
        "b",
    }
    assert decode(
        Point, tensor(numpy.array([[1]], "float32").reshape(()), "x"), tensor(numpy.float32(2), "y")
    ) == Point(1, 2)
    assert isinstance(decode(ImageModel, (Part("image/png", "image"), png())), ImageModel)
    with pytest.raises(TaskError, match="a part has no name"):
        decode(Point, (JSON, b"1"), tensor(numpy.float32(2), "y"))


@pytest.mark.parametrize(
    ("annotation", "part", "expected"),
    [
        (list[float], tensor(numpy.array([1, 2], "float32"), "x"), [1.0, 2.0]),
        (float, tensor(numpy.array([4], "float32")), 4.0),
        (str, (Part("", "", "BYTES", (1,)), b"\x02\0\0\0hi"), "hi"),
        (list[str], (Part("", "", "BYTES", (2,)), b"\x01\0\0\0a\x01\0\0\0b"), ["a", "b"]),
        (str, (Part("text/plain"), "grün".encode()), "grün"),
        (bytes, (Part("image/png"), b"raw"), b"raw"),
        (bytes, (Part("text/plain"), b"no base64"), b"no base64"),
        (Fields, (Part("text/csv", "data"), b"a,b"), {"data": b"a,b"}),
        (NDArray[numpy.uint8], (JSON, b"[0, 255]"), numpy.array([0, 255], "uint8")),
        (NDArray[numpy.int8], (JSON, b"[]"), numpy.array([], "int8")),
        (Any, (RAW, b"raw"), b"raw"),
    ],
)
def test_parts_become_plain_types(annotation: Any, part: tuple[Part, bytes], expected: Any) -> None:
    found = decode(annotation, part)
    assert (numpy.array_equal(found, expected), getattr(found, "dtype", None)) == (
        True,
        getattr(expected, "dtype", None),
    )


def test_tuple_takes_parts_in_order() -> None:
    first, second = decode(tuple[numpy.ndarray, numpy.ndarray], tensor([1]), tensor([2]))
    assert (first.tolist(), second.tolist()) == ([1], [2])


@pytest.mark.parametrize(
    ("part", "frame", "text"),
    [
        (Part("", "x", "float32", (2,)), b"\0" * 7, "x: 2 of float32 takes 8 bytes, got 7"),
        (Part("", "", "object", (1,)), b"\0" * 8, "no tensors of 'object'"),
        (Part("", "", "float128", (1,)), b"\0" * 16, "no tensors of 'float128'"),
        (Part("", "", "uint8", (2**31 - 1, 2**31 - 1, 2**31 - 1)), b"", "takes"),
        (Part("", "", "BYTES", (2**31 - 1,)), b"\0\0\0\0", "strings take at least"),
        (Part("", "", "BYTES", (1,)), b"\xff\0\0\0a", "string 0 is cut short"),
        (Part("", "", "BYTES", (0,)), b"a", "1 bytes are left"),
    ],
)
def test_wrong_frames_are_invalid(part: Part, frame: bytes, text: str) -> None:
    with pytest.raises(TaskError, match=text) as caught:
        decode(numpy.ndarray, (part, frame))
    assert caught.value.kind == "invalid"


def test_schema_describes_bytes_images_and_arrays() -> None:
    schema = InputDecoder(Sample, BOUNDS).schema()
    assert (schema["required"], schema["properties"]["pixels"]["type"]) == (["pixels"], "array")
    image = InputDecoder(ImageModel, BOUNDS).schema()["properties"]["image"]
    assert (image["type"], image["contentEncoding"]) == ("string", "base64")
    assert InputDecoder(Struct, BOUNDS).schema()["$defs"]["Struct"]["required"] == ["text"]
    assert InputDecoder(Any, BOUNDS).schema() == {}


def test_module_as_annotation_is_explained() -> None:
    with pytest.raises(UnsupportedType, match=r"PIL\.Image is a module"):
        InputDecoder(Image, BOUNDS)


def test_image_that_costs_far_more_than_its_bytes_is_refused() -> None:
    bounds = ImageBounds(1 << 20, 1 << 10)
    decoder = InputDecoder(Image.Image, bounds)
    with pytest.raises(TaskError, match="it has more than 100 scans"):
        decoder.decode([RAW], [scan_bomb(64, 101)])
    with pytest.raises(TaskError, match="too many scans for its size"):
        decoder.decode([RAW], [scan_bomb(1024, 90)])
    assert decoder.decode([RAW], [scan_bomb(64, 90)]).size == (64, 64)


def test_type_that_contains_itself() -> None:
    for kind in (Tree, TreeRecord):
        made = InputDecoder(kind, BOUNDS).decode([JSON], [b'{"children": [{"children": []}]}'])
        assert isinstance(made.children[0], kind)
    with pytest.raises(UnsupportedType, match="TreeOfBytes contains itself, so that it can hold no bytes"):
        InputDecoder(TreeOfBytes, BOUNDS)
    assert isinstance(InputDecoder(Pair, BOUNDS).decode([JSON], [b'{"a": {"x": 1}, "b": {"x": 2}}']), Pair)
