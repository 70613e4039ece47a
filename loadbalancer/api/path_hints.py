"""What to answer to a path that does not exist: the nearest one, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterable

from configs.text import clip, closest

#: Paths of other APIs without a counterpart.
_REASONS = {
    "/v1/images/variations": "Variations are not supported; send the image with a prompt to /v1/images/edits",
    "/v1/files": "Files are not stored; send images in the request, or as jobs to /v1/jobs",
    "/sdapi/v1/txt2img": "Images are made by /v1/images/generations",
    "/sdapi/v1/img2img": "Images are changed by /v1/images/edits",
    "/api/chat": "Chats are answered by /v1/chat/completions",
    "/api/generate": "Texts are continued by /v1/completions",
    "/v1/messages": "Chats are answered by /v1/chat/completions",
    "/predict": "No model here generates images; calls are sent to /v1/models/{model}:predict",
    "/v1/batches": "Batches are not supported; /v1/jobs queues requests",
    "/v2/repository/index": "Models are listed by /v1/models",
    "/redoc": "The API is described at /docs",
}
#: Paths that the document of the API leaves out.
_UNDOCUMENTED = frozenset({"/docs", "/openapi.json", "/health", "/livez"})
_MAX_PATH_CHARS = 80
_MIN_SIMILARITY = 0.7


def unknown_path(method: str, path: str, known: Iterable[str]) -> str:
    """Return the message for an unknown path. `known` are the templates of the existing ones."""
    text = f"Unknown path: {method} {clip(ascii(path)[1:-1], _MAX_PATH_CHARS)}."
    if path.startswith("/v1/models/") and path.endswith(":explain"):
        return f"{text} Models predict, and do not explain."
    if reason := _REASONS.get(path.rstrip("/")):
        return f"{text} {reason}."
    nearest = _nearest(path, list(known))
    return f"{text} Did you mean {nearest}?" if nearest else text


def method_hint(method: str, path: str) -> str:
    """Return what to say beside the methods that the path takes; empty for nothing."""
    if method == "POST" and path.startswith("/v1/models/"):
        return " Calls are sent to /v1/models/{model}:predict."
    return ""


def _nearest(path: str, known: list[str]) -> str | None:
    if len(path) > _MAX_PATH_CHARS:
        return None
    lower = "/" + path.strip("/").lower()
    # A base URL without /v1, or a client that adds it to a base URL that has it.
    for candidate in (lower, f"/v1{lower}", lower.replace("/v1/v1", "/v1", 1)):
        if candidate in known or candidate in _UNDOCUMENTED:
            return candidate
    return closest(lower, known, _MIN_SIMILARITY)
