"""Routes about scaling: the controller's report, its decisions, and commands to it. They require the scope `admin`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from loadbalancer.api.http_helpers import json_response
from loadbalancer.api.openapi import request_body, responses
from loadbalancer.api.page_access import check_page_access
from loadbalancer.api.query_parameters import check_query
from loadbalancer.api.scaling_commands import ScalingApi
from loadbalancer.schema.scaling import PauseRequest, ReloadRequest, ResumeRequest, ScaleRequest, WorkerRequest
from loadbalancer.services import Services
from wire.scaling import MAX_DECISIONS, DrainWorker, Pause, Reload, RestartWorker, Resume, Scale

_DECISIONS = responses("DecisionPage", 400, 404)
_SCALED = responses("OrderDone", 400, 404, 413, 429, 503, 504)


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["scaling"])

    def of_page(request: Request) -> None:
        check_page_access(services, request)

    api = ScalingApi(services)
    _add_reports(routes, api)
    _add_model_commands(routes, api, of_page)
    _add_worker_commands(routes, api, of_page)
    return routes


def _add_reports(routes: APIRouter, api: ScalingApi) -> None:
    """Add what the controller sends, and what is read of it."""

    @routes.get(
        "/internal/controller", summary="Get the controller's report", responses=responses("ControllerReport", 503)
    )
    async def controller() -> Response:
        """The latest report: models, workers, devices, overrides and pause."""
        return json_response(api.report())

    @routes.post("/internal/controller", include_in_schema=False)
    async def report(request: Request) -> Response:
        """Receive the controller's report and return the pending commands."""
        return await api.on_report(request)

    @routes.post("/internal/agents", include_in_schema=False)
    async def agents(request: Request) -> Response:
        """Forward the controller's orders to the machines, and return the state of each."""
        return await api.on_agent_exchange(request)

    @routes.get(
        "/internal/decisions", summary="List decisions", responses=_DECISIONS, dependencies=[Depends(check_query)]
    )
    async def decisions(
        model: Annotated[str | None, Query(description="Only decisions about this model.")] = None,
        limit: Annotated[str, Query(description=f"Maximum decisions per page, 1 to {MAX_DECISIONS}.")] = "100",
        before: Annotated[str | None, Query(description="Number of the last decision of the previous page.")] = None,
    ) -> Response:
        """The desired number of workers per model and the reasons, the newest first."""
        return api.decisions(model, limit, before)


def _add_model_commands(routes: APIRouter, api: ScalingApi, of_page: Callable[[Request], None]) -> None:
    """Add the commands for models."""

    @routes.post("/ui/scale", include_in_schema=False, dependencies=[Depends(of_page)])
    @routes.post(
        "/internal/scale",
        summary="Set a number of workers",
        openapi_extra=request_body("ScaleRequest"),
        responses=_SCALED,
    )
    async def scale(request: Request) -> Response:
        """Override a model's policy with a fixed number of workers for some time."""
        command = await api.read(ScaleRequest, request)
        api.check_bounds(command.model, command.workers)
        return await api.run_command(request, Scale(command.model, command.workers, command.hold_s))

    @routes.post("/ui/pause", include_in_schema=False, dependencies=[Depends(of_page)])
    @routes.post(
        "/internal/pause", summary="Pause scaling", openapi_extra=request_body("PauseRequest"), responses=_SCALED
    )
    async def pause(request: Request) -> Response:
        """Keep every number of workers. Workers that die are still replaced."""
        await api.read(PauseRequest, request)
        return await api.run_command(request, Pause())

    @routes.post("/ui/resume", include_in_schema=False, dependencies=[Depends(of_page)])
    @routes.post(
        "/internal/resume", summary="Resume scaling", openapi_extra=request_body("ResumeRequest"), responses=_SCALED
    )
    async def resume(request: Request) -> Response:
        """End the pause and the overrides."""
        command = await api.read(ResumeRequest, request)
        api.check_served(command.model)
        return await api.run_command(request, Resume(command.model))

    @routes.post("/ui/reload", include_in_schema=False, dependencies=[Depends(of_page)])
    @routes.post(
        "/internal/reload",
        summary="Reload the configuration",
        openapi_extra=request_body("ReloadRequest"),
        responses=_SCALED,
    )
    async def reload(request: Request) -> Response:
        """Apply changed settings, at once or by a rolling update. An invalid configuration changes nothing."""
        command = await api.read(ReloadRequest, request)
        api.check_served(*command.models)
        return await api.run_command(request, Reload(command.models))


def _add_worker_commands(routes: APIRouter, api: ScalingApi, of_page: Callable[[Request], None]) -> None:
    """Add the commands for a single worker."""

    @routes.post("/ui/drain", include_in_schema=False, dependencies=[Depends(of_page)])
    @routes.post(
        "/internal/drain", summary="Drain a worker", openapi_extra=request_body("WorkerRequest"), responses=_SCALED
    )
    async def drain(request: Request) -> Response:
        """Let a worker finish its tasks and end. A policy that still needs it starts another one."""
        return await api.run_command(request, DrainWorker((await api.read(WorkerRequest, request)).worker))

    @routes.post("/ui/restart", include_in_schema=False, dependencies=[Depends(of_page)])
    @routes.post(
        "/internal/restart", summary="Restart a worker", openapi_extra=request_body("WorkerRequest"), responses=_SCALED
    )
    async def restart(request: Request) -> Response:
        """Replace a worker. Where a device is free, the new one starts first."""
        return await api.run_command(request, RestartWorker((await api.read(WorkerRequest, request)).worker))
