"""Checks the model and the bounds of calls. Pure."""

from __future__ import annotations

from configs.sections import Server
from configs.settings import Settings
from loadbalancer.access.api_keys import Caller
from loadbalancer.generation.call_spec import CallSpec
from loadbalancer.generation.validation import endpoints, model_not_found
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.predictions import Instances
from wire.inputs import CallInputs, Part

#: An instance is one JSON value. By whether its output is streamed.
_INSTANCE = {stream: CallInputs((Part(),), stream) for stream in (False, True)}
#: Priorities of requests are from minus this to this.
MAX_PRIORITY = 100


def call_model(name: str, settings: Settings) -> str:
    """Return the name of a model that takes calls. Raises `ModelNotFound`, and `InvalidRequest` for other models."""
    model = settings.models.get(name)
    if model is None:
        raise model_not_found(name, settings)
    if model.task != "call":
        paths = " or ".join(endpoints(name, settings))
        text = f"The model '{name}' takes no calls: use POST {paths}."
        raise InvalidRequest(text, param="model", code="unsupported_endpoint")
    return name


def call_timeout_s(requested: float | None, server: Server) -> float:
    """Return the time limit of a call, by default the server's. Raises `InvalidRequest`."""
    if requested is None:
        return server.timeout_s
    if not 0 < requested <= server.max_timeout_s:
        allowed = f"Must be more than 0 and at most {server.max_timeout_s:g}"
        raise InvalidRequest(f"Invalid value for 'timeout_s': {shorten(requested)}. {allowed}.", param="timeout_s")
    return requested


def instances_spec(model: str, given: Instances, settings: Settings, caller: Caller, *, stream: bool) -> CallSpec:
    """Return the request of a task for each instance. Raises `InvalidRequest`."""
    return CallSpec(
        model,
        [_INSTANCE[stream]] * len(given.items),
        [[item] for item in given.items],
        call_timeout_s(given.timeout_s, settings.server),
        call_priority(given.priority or 0),
        caller.owner,
        caller.weight,
        "instances",
    )


def call_priority(requested: int) -> int:
    """Return the priority. Raises `InvalidRequest`."""
    if not -MAX_PRIORITY <= requested <= MAX_PRIORITY:
        allowed = f"Must be between -{MAX_PRIORITY} and {MAX_PRIORITY}"
        raise InvalidRequest(f"Invalid value for 'priority': {requested}. {allowed}.", param="priority")
    return requested
