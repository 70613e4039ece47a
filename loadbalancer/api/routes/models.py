"""`GET /v1/models`: what is served, with what defaults and limits, what it can do and how fast, and if it is ready."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from loadbalancer.api.http_helpers import Services, json_response, list_loras, responses
from loadbalancer.generation.validation import model_not_found
from loadbalancer.schema.responses import Curve, ModelCard, ModelList


def router(services: Services) -> APIRouter:
    """The routes about models."""
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models", summary="List the models", responses=responses("ModelList"))
    async def list_models() -> Response:
        """Every served model."""
        return json_response(ModelList([await _card(services, name) for name in services.settings.models]))

    @routes.get("/v1/models/{model}", summary="Describe a model", responses=responses("ModelCard", 404))
    async def describe_model(model: str) -> Response:
        """One served model."""
        if model not in services.settings.models:
            raise model_not_found(model, services.settings)
        return json_response(await _card(services, model))

    return routes


async def _card(services: Services, name: str) -> ModelCard:
    model, scheduler = services.settings.models[name], services.scheduler
    about = scheduler.engine_info(name)
    curves = [Curve(f"{curve.width}x{curve.height}", curve.cap, curve.points) for curve in scheduler.step_curves(name)]
    return ModelCard(
        id=name,
        created=services.started,
        engine=model.engine,
        defaults=model.defaults.model_dump(),
        limits=model.limits.model_dump() | {"max_n": services.settings.server.max_n},
        ready=scheduler.is_ready(name),
        workers=sum(worker.model == name for worker in scheduler.snapshot().workers),
        loras=await asyncio.to_thread(list_loras, model.loras) if model.loras else [],
        pipeline=about.pipeline if about else None,
        batching=about.batching if about else None,
        modes=list(about.modes) if about else [],
        checkpoints=about.checkpoints if about else None,
        reproducible=about.reproducible if about else None,
        curves=curves,
    )
