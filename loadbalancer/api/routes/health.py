"""Routes about the server itself: health, readiness, metrics and the scheduler's snapshot."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest, HotRoutes
from loadbalancer.api.http_helpers import encode_json, json_response
from loadbalancer.api.openapi import responses
from loadbalancer.api.readiness import check_ready
from loadbalancer.metrics.exposition import MetricsExposition
from loadbalancer.schema.responses import Health
from loadbalancer.services import Services


def router(services: Services, hot: HotRoutes) -> APIRouter:
    routes = APIRouter(tags=["server"])
    exposition = MetricsExposition(services.metrics.registry)
    alive = [encode_json(Health("ok"))]

    # The second name is the one that vLLM, SGLang and the clients of their benchmarks use.
    @routes.get("/health", include_in_schema=False)
    @routes.get("/livez", include_in_schema=False)
    @routes.get("/healthz", summary="Is the process alive?", responses=responses("Health"))
    @hot.endpoint(max_bytes=0)
    def healthz(_: HotRequest) -> Response:
        """200 while the process lives."""
        return FrameResponse(alive, "application/json")

    @routes.get("/readyz", summary="Is every model ready?", responses=responses("Health", 503))
    async def readyz() -> Response:
        """200 while every model takes requests, else 503 with the models that do not.

        A model is ready while one of its workers is, or when its workers start on demand (`min_workers: 0`). A model
        whose workers fail to start is not ready, and the text says why. Without its data directory the server can
        neither start workers nor store jobs: 503 until it is restarted.
        """
        await check_ready(services, services.settings.models)
        return json_response(Health("ready"))

    @routes.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Queue, workers, requests and images in the text format of Prometheus."""
        text, media_type = await exposition.encode(request.headers.get("accept", ""))
        return Response(text, media_type=media_type)

    @routes.get("/internal/snapshot", include_in_schema=False)
    async def snapshot() -> Response:
        """The input of scaling decisions. Only the controller and administrators have access."""
        return json_response(services.scheduler.snapshot())

    return routes
