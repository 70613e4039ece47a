"""Brings the messages of a chat into the form that chat templates take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from worker.engine import TaskError


def template_messages(messages: Sequence[dict[str, Any]], *, knows_developer: bool) -> list[dict[str, Any]]:
    """Return the messages with texts as content and objects as arguments of calls.

    Raises `TaskError` for messages that no template takes.
    """
    if not messages:
        raise _invalid("messages is empty")
    return [_message(f"messages.{i}", message, knows_developer) for i, message in enumerate(messages)]


def _message(place: str, message: dict[str, Any], knows_developer: bool) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str):
        raise _invalid(f"{place}.role must be a text")
    if role == "developer" and not knows_developer:
        role = "system"
    others = {key: value for key, value in message.items() if value is not None and key not in ("role", "content")}
    if others.get("tool_calls"):
        others["tool_calls"] = _calls(f"{place}.tool_calls", others["tool_calls"])
    return {"role": role, "content": _text(f"{place}.content", message.get("content")), **others}


def _text(place: str, content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _invalid(f"{place} must be a text or a list of text parts")
    return "\n".join(_part(f"{place}.{i}", part) for i, part in enumerate(content))


def _part(place: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise _invalid(f"{place} is no text part ({kind!r}): this model takes texts only")
    return text


def _calls(place: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise _invalid(f"{place} must be a list of objects")
    return [_call(call) for call in calls]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Clients send arguments as JSON, templates write them as JSON: they take the object."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call  # as a model wrote it
    return {**call, "function": {**function, "arguments": arguments}}


def _invalid(message: str) -> TaskError:
    return TaskError("invalid", message, 400)
