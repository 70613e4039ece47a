"""The Open Inference Protocol (KServe V2): tensors in and out, as JSON or as bytes after a header of JSON.

A request is one call, and its tensors are the parts. The names of the protocol are kept in the structs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from loadbalancer.schema import tensors
from loadbalancer.schema.call_results import CallResult, tensor_type
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.media_types import BYTES
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.raw_json import TooManyItems, array_items
from loadbalancer.schema.struct_parsing import invalid_json, parse_struct, unknown_parameter
from loadbalancer.schema.tensors import DATATYPES, DataType, InvalidTensor
from wire.codec import Frame
from wire.inputs import Part

#: Tensors of one request.
MAX_TENSORS = 64
#: Longer shapes and parameters are refused before they are decoded.
_MAX_MEMBER_BYTES = 4096
#: Name of a part that has none: the protocol's tensors have names.
_OUTPUT = "output"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Parameters = dict[str, str | float | bool]
Dimension = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
#: Members that are decoded when their size is known, and what the document says about them.
_VALUE = {"type": ["string", "number", "boolean"]}
RawParameters = Annotated[
    msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "object", "additionalProperties": _VALUE})
]
RawShape = Annotated[
    msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "array", "items": {"type": "integer", "minimum": 0}})
]
RawData = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "array", "items": {}})]
RawInputs = Annotated[
    msgspec.Raw,
    msgspec.Meta(extra_json_schema={"type": "array", "items": {"$ref": "#/components/schemas/InferInput"}}),
]
RawOutputs = Annotated[
    msgspec.Raw,
    msgspec.Meta(extra_json_schema={"type": "array", "items": {"$ref": "#/components/schemas/InferOutput"}}),
]


class InferInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of a request: `data` in JSON, or the parameter `binary_data_size` and bytes after the header."""

    name: Name
    shape: RawShape
    datatype: Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(DATATYPES)})]
    parameters: RawParameters | msgspec.UnsetType = msgspec.UNSET
    data: RawData | msgspec.UnsetType = msgspec.UNSET


class InferOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An output to return. The parameter `binary_data`: as bytes after the header."""

    name: Name
    parameters: RawParameters | msgspec.UnsetType = msgspec.UNSET


class InferRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v2/models/{model}/infer`: one call."""

    inputs: RawInputs
    id: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    parameters: RawParameters | msgspec.UnsetType = msgspec.UNSET
    outputs: RawOutputs | msgspec.UnsetType = msgspec.UNSET


class InferenceCall(NamedTuple):
    """A parsed request: its parts with a frame of each, and how to return the outputs."""

    parts: tuple[Part, ...]
    frames: list[Frame]
    id: str | None = None
    #: Names of the outputs to return, and whether as bytes; None for all.
    outputs: Mapping[str, bool] | None = None
    #: As bytes, where `outputs` does not say.
    binary: bool = False
    timeout_s: float | None = None


_OptionalRaw = msgspec.Raw | msgspec.UnsetType
_request = msgspec.json.Decoder(InferRequest)
_input = msgspec.json.Decoder(InferInput)
_output = msgspec.json.Decoder(InferOutput)
_shape = msgspec.json.Decoder(Annotated[list[Dimension], msgspec.Meta(max_length=tensors.MAX_DIMENSIONS)])
_parameters = msgspec.json.Decoder(Parameters)


def parse_inference(header: bytes, binary: memoryview) -> InferenceCall:
    """Parse the JSON and the bytes that follow it. Raises `InvalidRequest`."""
    request = parse_struct(_request, header)
    options = _read_parameters(request.parameters, "parameters", ("binary_data_output", "timeout"))
    parts: list[Part] = []
    frames: list[Frame] = []
    position = 0
    strings = 0
    for index, raw in enumerate(_items(request.inputs, "inputs")):
        part, frame = _tensor(raw, f"inputs[{index}]", binary[position:])
        strings += tensors.element_count(part.shape) if part.dtype == tensors.BYTES.dtype else 0
        if strings > tensors.MAX_STRINGS:
            text = f"Invalid value for 'inputs': more than {tensors.MAX_STRINGS} strings, the maximum of a request."
            raise InvalidRequest(text, param="inputs")
        if isinstance(frame, memoryview):
            position += len(frame)
        if any(part.name == other.name for other in parts):
            text = f"Invalid value for 'inputs[{index}].name': {shorten(part.name)} is the name of another input."
            raise InvalidRequest(text, param=f"inputs[{index}].name")
        parts.append(part)
        frames.append(frame)
    if not parts:
        raise InvalidRequest("Invalid value for 'inputs': it is empty. Must have at least one.", param="inputs")
    if position != len(binary):
        text = f"{len(binary) - position} bytes follow those of the inputs with binary_data_size."
        raise InvalidRequest(text, param="inputs", code="invalid_body")
    outputs = _outputs(request.outputs, binary=bool(options.get("binary_data_output")))
    return InferenceCall(
        tuple(parts), frames, request.id, outputs, bool(options.get("binary_data_output")), _timeout_s(options)
    )


def _present(raw: _OptionalRaw) -> msgspec.Raw | None:
    """The member; None if it is missing or null."""
    return None if raw is msgspec.UNSET or bytes(memoryview(raw)[:4]) == b"null" else raw


def _items(array: _OptionalRaw, name: str) -> list[memoryview]:
    given = _present(array)
    try:
        return [] if given is None else array_items(given, MAX_TENSORS)
    except TooManyItems:
        text = f"Invalid value for '{name}': more than {MAX_TENSORS}, the maximum."
        raise InvalidRequest(text, param=name) from None
    except msgspec.ValidationError:
        text = f"Invalid type for '{name}': Expected a list."
        raise InvalidRequest(text, param=name, code="invalid_type") from None
    except RecursionError:
        raise invalid_json("it is nested too deeply") from None


def _tensor(raw: memoryview, path: str, binary: memoryview) -> tuple[Part, Frame]:
    """The part of one input and its elements: a slice of `binary`, or new bytes where they are JSON."""
    given = parse_struct(_input, raw, path)
    if not given.name.isprintable():
        text = f"Invalid value for '{path}.name': {shorten(given.name)}. Must be printable."
        raise InvalidRequest(text, param=f"{path}.name")
    datatype = DATATYPES.get(given.datatype)
    if datatype is None:
        text = f"Invalid value for '{path}.datatype': {shorten(given.datatype)}. Supported: {', '.join(DATATYPES)}."
        raise InvalidRequest(text, param=f"{path}.datatype")
    shape = _decode_small(_shape, given.shape, f"{path}.shape", "a list of up to 32 integers from 0")
    part = Part(BYTES, given.name, datatype.dtype, tuple(shape))
    options = _read_parameters(given.parameters, f"{path}.parameters", ("binary_data_size", "content_type"))
    size = options.get("binary_data_size")
    data = _present(given.data)
    if (size is None) == (data is None):
        text = f"Invalid value for '{path}': Must have either data, or the parameter binary_data_size."
        raise InvalidRequest(text, param=path)
    try:
        if data is not None:
            return part, tensors.from_json(datatype, shape, data)
        return part, _binary_elements(datatype, shape, size, binary)
    except InvalidTensor as error:
        raise InvalidRequest(f"Invalid value for '{path}': {error}.", param=path) from None


def _binary_elements(datatype: DataType, shape: Sequence[int], size: object, binary: memoryview) -> memoryview:
    if isinstance(size, bool) or not isinstance(size, int | float) or size != int(size) or size < 0:
        raise InvalidTensor("its binary_data_size is no number of bytes")
    if size > len(binary):
        raise InvalidTensor(f"its binary_data_size is {int(size)}, and {len(binary)} bytes follow the header")
    data = binary[: int(size)]
    tensors.check_size(datatype, shape, len(data))
    if datatype is tensors.BYTES:
        tensors.decode_strings(data, tensors.element_count(shape))
    return data


def _outputs(array: _OptionalRaw, *, binary: bool) -> dict[str, bool] | None:
    found = {}
    for index, raw in enumerate(_items(array, "outputs")):
        given = parse_struct(_output, raw, f"outputs[{index}]")
        options = _read_parameters(given.parameters, f"outputs[{index}].parameters", ("binary_data",))
        found[given.name] = bool(options.get("binary_data", binary))
    return found or None


def _read_parameters(raw: _OptionalRaw, path: str, known: tuple[str, ...]) -> Parameters:
    given = _present(raw)
    if given is None:
        return {}
    found: Parameters = _decode_small(_parameters, given, path, "an object of texts, numbers and booleans")
    for name in found:
        if name not in known:
            raise unknown_parameter(f"{path}.{name}")
    return found


def _decode_small(decoder: msgspec.json.Decoder[Any], raw: msgspec.Raw, path: str, expected: str) -> Any:
    if len(memoryview(raw)) <= _MAX_MEMBER_BYTES:
        try:
            return decoder.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
    raise InvalidRequest(f"Invalid value for '{path}': Must be {expected}.", param=path)


def _timeout_s(options: Parameters) -> float | None:
    """Triton's parameter `timeout`, in microseconds."""
    timeout = options.get("timeout")
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
        raise InvalidRequest(
            "Invalid value for 'parameters.timeout': Must be microseconds, more than 0.", param="parameters.timeout"
        )
    return timeout / 1e6


class InferenceResponse(NamedTuple):
    """The JSON of a response, and the frames that follow it."""

    header: bytes
    frames: list[Frame]


def inference_response(model: str, call: InferenceCall, result: CallResult) -> InferenceResponse:
    """Return the response. Raises `InvalidRequest` for an output that does not exist, and `InvalidResult`."""
    named = _named(result)
    if call.outputs is not None:
        missing = next((name for name in call.outputs if name not in named), None)
        if missing is not None:
            text = f"There is no output {shorten(missing)}. The model has returned: {', '.join(map(repr, named))}."
            raise InvalidRequest(text, param="outputs")
        named = {name: named[name] for name in call.outputs}
    outputs: list[bytes] = []
    frames: list[Frame] = []
    for name, (part, frame) in named.items():
        binary = call.binary if call.outputs is None else call.outputs[name]
        outputs.append(_output_json(name, part, frame, binary=binary))
        if binary:
            frames += _binary_frames(part, frame)
    header = {"model_name": model} | ({} if call.id is None else {"id": call.id})
    encoded = msgspec.json.encode(header)[:-1] + b',"outputs":[' + b",".join(outputs) + b"]}"
    return InferenceResponse(encoded, frames)


def _named(result: CallResult) -> dict[str, tuple[Part, Frame]]:
    unnamed = sum(not part.name for part in result.parts)
    found: dict[str, tuple[Part, Frame]] = {}
    for index, (part, frame) in enumerate(zip(*result, strict=True)):
        default = _OUTPUT if unnamed == 1 else f"{_OUTPUT}{index}"
        found[part.name or default] = part, frame
    return found


def _output_json(name: str, part: Part, frame: Frame, *, binary: bool) -> bytes:
    """One output without its bytes, if it is `binary`."""
    try:
        if part.dtype:
            datatype = tensor_type(part, frame)
            head = {"name": name, "datatype": tensors.NAMES[part.dtype], "shape": part.shape}
            data = b"" if binary else b"".join(tensors.to_json(datatype, part.shape, frame))
            size = memoryview(frame).nbytes
        else:  # a value that is no tensor is one element
            head = {"name": name, "datatype": "BYTES", "shape": [1]}
            data = b"" if binary else msgspec.json.encode([str(frame, "utf-8")])
            size = 4 + memoryview(frame).nbytes
    except (InvalidTensor, UnicodeDecodeError):
        text = f"The output {name!r} is not text in UTF-8: request it with the parameter binary_data."
        raise InvalidRequest(text, param="outputs") from None
    parameters: dict[str, str | int] = {} if part.dtype else {"content_type": part.media_type}
    if binary:
        parameters["binary_data_size"] = size
    encoded = msgspec.json.encode(head | ({"parameters": parameters} if parameters else {}))
    return encoded if binary else encoded[:-1] + b',"data":' + data + b"}"


def _binary_frames(part: Part, frame: Frame) -> list[Frame]:
    return [frame] if part.dtype else [memoryview(frame).nbytes.to_bytes(4, "little"), frame]
