"""Routes about the server itself: health, readiness, metrics and the scheduler's snapshot."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from prometheus_client.exposition import choose_encoder

from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest, HotRoutes
from loadbalancer.api.http_helpers import encode_json, json_response
from loadbalancer.api.openapi import responses
from loadbalancer.schema.errors import Unavailable, shutting_down
from loadbalancer.schema.responses import Health
from loadbalancer.services import Services


def router(services: Services, hot: HotRoutes) -> APIRouter:
    routes = APIRouter(tags=["server"])
    alive = [encode_json(Health("ok"))]

    @routes.get("/", include_in_schema=False)
    async def home() -> Response:
        return RedirectResponse("/docs")

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
        if not services.tracker.is_open:
            raise shutting_down()
        if problem := await asyncio.to_thread(services.data_dir.problem):
            text = f"No worker can start and no job can be stored: {problem}. Restart the server."
            raise Unavailable(text, code="storage_unavailable", retry_after_s=60)
        # The controller's bounds are newer: they may have changed since this program started.
        reported = services.control.models(time.monotonic())
        min_workers = {
            name: reported[name].min_workers if name in reported else services.settings.scaling(name).min_workers
            for name in services.settings.models
        }
        if broken := {name: why for name in min_workers if (why := services.tracker.start_failure(name))}:
            text = "; ".join(f"the model '{name}' cannot start: {why}" for name, why in broken.items())
            raise Unavailable(f"{text[0].upper()}{text[1:]}.", code="model_cannot_start", retry_after_s=60)
        missing = [name for name, n in min_workers.items() if n and not services.scheduler.is_ready(name)]
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
        """The input of scaling decisions. Only the controller and administrators have access."""
        return json_response(services.scheduler.snapshot())

    return routes
