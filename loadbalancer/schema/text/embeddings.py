"""`POST /v1/embeddings`: the request and the response. The vectors are results of an engine of the user."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from loadbalancer.schema.call_results import CallResult, InvalidResult, as_json
from loadbalancer.schema.errors import InvalidRequest, TaskFailed
from loadbalancer.schema.predictions import Priority, Timeout
from loadbalancer.schema.responses import base64_json
from loadbalancer.schema.text.fields import Ignored


class EmbeddingsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/embeddings`. A null counts as absent."""

    input: Annotated[str | list[str | int | list[int]], msgspec.Meta(description="A text, or a list of texts.")]
    model: (
        Annotated[str, msgspec.Meta(description="Name of a model with `embeddings: true`; default: the first.")] | None
    ) = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, description="Must be that of the model.")] | None = None
    priority: Priority | None = None
    timeout_s: Timeout | None = None
    user: Ignored = None

    def texts(self, max_texts: int) -> list[str]:
        """Return the texts. Raises `InvalidRequest` for tokens, and for more than allowed."""
        given = [self.input] if isinstance(self.input, str) else self.input
        texts = [each for each in given if isinstance(each, str)]
        if len(texts) < len(given):
            text = "Invalid type for 'input'. Expected a text or a list of texts; ids of tokens are not supported."
            raise InvalidRequest(text, param="input", code="invalid_type")
        if not 1 <= len(texts) <= max_texts:
            text = f"Invalid value for 'input': {len(texts)} texts. Must be between 1 and {max_texts}"
            raise InvalidRequest(f"{text} (server.max_instances).", param="input")
        return texts


class EmbeddingItem(msgspec.Struct, frozen=True):
    """The vector of one text: numbers, or base64 of little-endian float32."""

    embedding: Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": ["array", "string"]})]
    index: int
    object: Literal["embedding"] = "embedding"


class EmbeddingsUsage(msgspec.Struct, frozen=True):
    """Always zero: the engine does not count tokens."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsAnswer(msgspec.Struct, frozen=True):
    """The response to a request for embeddings."""

    data: list[EmbeddingItem]
    model: str
    object: Literal["list"] = "list"
    usage: EmbeddingsUsage = EmbeddingsUsage()


class _Wrapped(msgspec.Struct):
    """A result of an engine that puts its vector into an object."""

    embedding: list[float]


_decode: Any = msgspec.json.Decoder(list[float] | _Wrapped).decode


def embeddings_answer(request: EmbeddingsRequest, model: str, results: Iterable[CallResult]) -> EmbeddingsAnswer:
    """Return the response.

    Raises `TaskFailed` for a result that is no vector, and `InvalidRequest` where it has other dimensions.
    """
    is_base64 = request.encoding_format == "base64"
    data = []
    for index, result in enumerate(results):
        vector = _vector(result)
        if request.dimensions not in (None, len(vector)):
            text = f"Invalid value for 'dimensions': {request.dimensions}. Vectors of this model have {len(vector)}."
            raise InvalidRequest(text, param="dimensions")
        packed = struct.pack(f"<{len(vector)}f", *vector)
        encoded = base64_json(packed) if is_base64 else msgspec.Raw(msgspec.json.encode(vector))
        data.append(EmbeddingItem(encoded, index))
    return EmbeddingsAnswer(data, model)


def _vector(result: CallResult) -> Sequence[float]:
    try:
        found = _decode(b"".join(as_json(result)))
        vector: list[float] = found.embedding if isinstance(found, _Wrapped) else found
        struct.pack(f"<{len(vector)}f", *vector)
    except (InvalidResult, msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        text = "The model's result is no vector: neither a list of numbers nor an object with an 'embedding'."
        raise TaskFailed(text, code="invalid_result") from None
    return vector
