"""The methods of a path, for the header Allow."""

from __future__ import annotations

from collections.abc import Container, Iterable

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.routing import Match, Route

from loadbalancer.schema.errors import MethodNotAllowed

#: The response to `OPTIONS *`, which asks about the server and no path: the methods that some path takes.
SERVER_OPTIONS = Response(status_code=204, headers={"allow": "DELETE, GET, HEAD, OPTIONS, POST"})


def keep_routes(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Let `allowed_methods` know the routes of the included routers, which the application itself does not list."""
    app.state.routes = [route for router in routers for route in router.routes if isinstance(route, Route)]


def allowed_methods(request: Request, named: str) -> list[str]:
    """Return the methods that the path of the request takes. HEAD goes with GET.

    `named` are those of the route that refused it: a path may have several routes.
    """
    routes: list[Route] = getattr(request.app.state, "routes", [])
    first = next((route for route in routes if route.matches(request.scope)[0] is not Match.NONE), None)
    methods = {method.strip() for method in named.split(",") if method.strip()}
    if first is not None:
        methods |= {method for route in routes if route.path == first.path for method in route.methods or ()}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def check_is_no_call(request: Request, model: str, suffix: str, models: Container[str]) -> None:
    """Raise `MethodNotAllowed` for a GET of the path that calls a model: its suffix seems to be a part of the name."""
    name = model.removesuffix(suffix)
    if name != model and name in models:
        text = f"{request.method} {request.url.path}: this path allows POST."
        raise MethodNotAllowed(text, headers={"allow": "POST"})
