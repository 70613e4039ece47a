"""`GET /v1/models`: the served models with their endpoints, defaults, limits, capabilities, step times and state."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from loadbalancer.api.allowed_methods import check_is_no_call
from loadbalancer.api.http_helpers import json_response
from loadbalancer.api.image_requests import list_loras
from loadbalancer.api.openapi import responses
from loadbalancer.generation.text.text_model import text_card
from loadbalancer.generation.validation import endpoints, image_model, model_not_found
from loadbalancer.schema.errors import NotFound
from loadbalancer.schema.responses import Curve, ModelCard, ModelList
from loadbalancer.services import Services


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models", summary="List the models", responses=responses("ModelList"))
    async def list_models() -> Response:
        """Every served model."""
        return json_response(ModelList([await _card(services, name) for name in services.settings.models]))

    @routes.get("/v1/models/{model:path}", summary="Describe a model", responses=responses("ModelCard", 404))
    async def describe_model(request: Request, model: str) -> Response:
        """One served model."""
        if model not in services.settings.models:
            if not model:
                raise NotFound("Unknown path: GET /v1/models/. Did you mean /v1/models?")
            check_is_no_call(request, model, ":predict", services.settings.models)
            raise model_not_found(model, services.settings)
        return json_response(await _card(services, model))

    return routes


async def _card(services: Services, name: str) -> ModelCard:
    model, scheduler = services.settings.models[name], services.scheduler
    engine, is_image = scheduler.pools[name].engine_info, model.task == "image"
    limits: dict[str, Any] = {"max_instances": services.settings.max_instances}
    if is_image:
        limits = model.limits.model_dump() | {"max_n": services.settings.server.max_n}
    defaults: dict[str, Any] = image_model(name, model, engine).defaults.model_dump() if is_image else {}
    if model.task == "text":
        limits, defaults = text_card(model.text, engine.text if engine else None)
    curves = [Curve(curve.shape.key, curve.cap, curve.points) for curve in scheduler.step_curves(name)]
    return ModelCard(
        id=name,
        created=services.started,
        engine=model.engine_name,
        defaults=defaults,
        limits=limits,
        ready=scheduler.is_ready(name),
        workers=sum(worker.model == name for worker in scheduler.snapshot().workers),
        loras=await asyncio.to_thread(list_loras, model.loras) if model.loras else [],
        pipeline=engine.pipeline if engine else None,
        batching=engine.batching if engine else None,
        shares_passes=engine.shares_passes if engine else None,
        modes=list(engine.modes) if engine else [],
        checkpoints=engine.checkpoints if engine else None,
        reproducible=engine.reproducible if engine else None,
        curves=curves,
        cannot_start=services.tracker.start_failure(name) or None,
        name=name,
        task=model.task,
        endpoints=endpoints(name, services.settings),
        streams=engine.streams if engine else None,
        quality={each: preset.model_dump(exclude_none=True) for each, preset in model.quality.items()},
    )
