"""The parameters in the query of a request: those that its route has, each of them once."""

from __future__ import annotations

from fastapi import Request
from fastapi.routing import APIRoute

from configs.text import clip
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.struct_parsing import unknown_parameter

_MAX_NAME_CHARS = 80


def check_query(request: Request) -> None:
    """Raise `InvalidRequest` for a parameter that the route does not have, or that is there twice.

    A dependency of the routes that have parameters. Others ignore the query: some clients add one to every path.
    """
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = [field.alias for field in route.dependant.query_params]
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            error = unknown_parameter(name, known)
            text = f"{error.message} Supported: {', '.join(known)}."
            raise InvalidRequest(text, param=error.param, code=error.code)
        if names.count(name) > 1:
            text = f"The parameter {clip(repr(name), _MAX_NAME_CHARS)} is there more than once."
            raise InvalidRequest(text, param=name, code="duplicate_parameter")
