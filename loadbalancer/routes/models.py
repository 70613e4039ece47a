"""`GET /v1/models`: what is served, with what defaults and limits, and whether it is ready."""

from __future__ import annotations

from fastapi import APIRouter, Response

from loadbalancer.admission import model_not_found
from loadbalancer.routes.common import Services, answer, answers
from loadbalancer.schemas import ModelCard, ModelList


def router(services: Services) -> APIRouter:
    """The routes about models."""
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models", summary="List the models", responses=answers("ModelList"))
    async def list_models() -> Response:
        """Every served model."""
        return answer(ModelList([_card(services, name) for name in services.settings.models]))

    @routes.get("/v1/models/{model}", summary="Describe a model", responses=answers("ModelCard", 404))
    async def describe_model(model: str) -> Response:
        """One served model."""
        if model not in services.settings.models:
            raise model_not_found(model, services.settings)
        return answer(_card(services, model))

    return routes


def _card(services: Services, name: str) -> ModelCard:
    model = services.settings.models[name]
    return ModelCard(
        id=name,
        created=services.started,
        engine=model.engine,
        defaults=model.defaults.model_dump(),
        limits=model.limits.model_dump() | {"max_n": services.settings.server.max_n},
        ready=services.hub.ready(name),
        workers=sum(worker.model == name for worker in services.hub.snapshot().workers),
    )
