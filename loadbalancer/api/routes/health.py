"""How the server is: for people, for load balancers, for Prometheus and for the controller."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from prometheus_client.exposition import choose_encoder

from loadbalancer.api.http_helpers import Services, json_response, responses
from loadbalancer.schema.errors import Unavailable, shutting_down


class Health(msgspec.Struct, frozen=True):
    """The answer of `/healthz` and `/readyz`."""

    status: str


def router(services: Services) -> APIRouter:
    """The routes about the server itself."""
    routes = APIRouter(tags=["server"])

    @routes.get("/", include_in_schema=False)
    async def home() -> Response:
        """To the documentation."""
        return RedirectResponse("/docs")

    @routes.get("/healthz", summary="Is the process alive?", responses=responses("Health"))
    async def healthz() -> Response:
        """200 while the process lives."""
        return json_response(Health("ok"))

    @routes.get("/readyz", summary="Is every model ready?", responses=responses("Health", 503))
    async def readyz() -> Response:
        """200 while every model takes requests, else 503 with what is missing.

        A model does while a worker of it is ready, or its workers come with the first request (`min_workers: 0`).
        """
        if not services.tracker.is_open:
            raise shutting_down()
        # The controller knows better: its bounds may have changed since this program started.
        told = services.control.models(time.monotonic())
        least = {
            name: told[name].min_workers if name in told else services.settings.scaling(name).min_workers
            for name in services.settings.models
        }
        missing = [name for name in least if least[name] and not services.scheduler.is_ready(name)]
        if missing:
            raise Unavailable(f"No worker is ready for: {', '.join(missing)}.", code="not_ready", retry_after_s=1)
        return json_response(Health("ready"))

    @routes.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Queue, workers, requests and images in the text format of Prometheus."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(services.metrics.registry), media_type=media_type)

    @routes.get("/internal/snapshot", include_in_schema=False)
    async def snapshot() -> Response:
        """What scaling decisions rest on. The gate lets only the controller and administrators through."""
        return json_response(services.scheduler.snapshot())

    return routes
