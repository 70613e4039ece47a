"""The responses of the Open Inference Protocol about the server and its models, by the protocol's names."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec


class ServerLive(msgspec.Struct, frozen=True):
    """`GET /v2/health/live`."""

    live: bool


class ServerReady(msgspec.Struct, frozen=True):
    """`GET /v2/health/ready`: the specification names the field `live`, and KServe and its clients `ready`."""

    live: bool
    ready: bool


class ModelReady(msgspec.Struct, frozen=True):
    """`GET /v2/models/{model}/ready`."""

    name: str
    ready: bool


class ServerMetadata(msgspec.Struct, frozen=True):
    """`GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor of a model."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True):
    """`GET /v2/models/{model}`. Engines describe their inputs by JSON Schema, in `/docs`, and not as tensors."""

    name: str
    platform: str
    inputs: list[TensorMetadata] = []
    outputs: list[TensorMetadata] = []


class InferTensor(msgspec.Struct, frozen=True):
    """One output: `data` in JSON, or the parameter `binary_data_size` and bytes after the header."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET


class InferAnswer(msgspec.Struct, frozen=True):
    """The response of `/v2/models/{model}/infer`."""

    model_name: str
    outputs: list[InferTensor]
    id: Annotated[str, msgspec.Meta(description="The `id` of the request.")] | msgspec.UnsetType = msgspec.UNSET


class ProtocolError(msgspec.Struct, frozen=True):
    """An error of this protocol."""

    error: str
