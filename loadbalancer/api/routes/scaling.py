"""Routes about scaling: the controller's report, its decisions, and commands to it. They require the scope `admin`."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Annotated, NoReturn, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from loadbalancer.access.api_keys import INTERNAL
from loadbalancer.api.http_helpers import json_response, read_json, wait_first
from loadbalancer.api.openapi import request_body, responses
from loadbalancer.api.page_access import check_page_access
from loadbalancer.generation.validation import model_not_found
from loadbalancer.scaling.control_plane import MAX_PENDING_COMMANDS, ControlPlane, TooManyCommands
from loadbalancer.schema.errors import Forbidden, InvalidRequest, TimedOut, TooBusy, Unavailable
from loadbalancer.schema.parsing import parse, shorten
from loadbalancer.schema.scaling import PauseRequest, ReloadRequest, ResumeRequest, ScaleRequest, WorkerRequest
from loadbalancer.services import Services
from wire.agents import AgentExchange
from wire.scaling import (
    MAX_DECISIONS,
    Command,
    CommandResult,
    ControllerReport,
    DrainWorker,
    OrderDone,
    Pause,
    Reload,
    RestartWorker,
    Resume,
    Scale,
)

Body = TypeVar("Body", bound=BaseModel)

#: Enough for a thousand models and ten thousand workers.
_MAX_REPORT_BYTES = 16 << 20
#: The controller polls each second.
_COMMAND_TIMEOUT_S = 15.0
_DECISIONS = responses("DecisionPage", 400, 404)
_SCALED = responses("OrderDone", 400, 404, 413, 429, 503, 504)


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["scaling"])

    def of_page(request: Request) -> None:
        check_page_access(services, request)

    api = _ScalingApi(services)

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

    @routes.get("/internal/decisions", summary="List decisions", responses=_DECISIONS)
    async def decisions(
        model: Annotated[str | None, Query(description="Only decisions about this model.")] = None,
        limit: Annotated[str, Query(description=f"Maximum decisions per page, 1 to {MAX_DECISIONS}.")] = "100",
        before: Annotated[str | None, Query(description="Number of the last decision of the previous page.")] = None,
    ) -> Response:
        """The desired number of workers per model and the reasons, the newest first."""
        return api.decisions(model, limit, before)

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

    _add_worker_commands(routes, api, of_page)
    return routes


def _add_worker_commands(routes: APIRouter, api: _ScalingApi, of_page: Callable[[Request], None]) -> None:
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


class _ScalingApi:
    """Sends commands to the controller through the control plane."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._control: ControlPlane = services.control
        self._waiting: dict[str, tuple[asyncio.Future[None], list[CommandResult]]] = {}
        self._reports = msgspec.json.Decoder(ControllerReport)
        self._exchanges = msgspec.json.Decoder(AgentExchange)

    async def read(self, kind: type[Body], request: Request) -> Body:
        """The body; an empty one means the defaults."""
        body = await read_json(request, self._services.settings.server.max_body_bytes)
        return parse(kind, body.strip() or b"{}")

    def report(self) -> ControllerReport:
        """The latest report. Raises `Unavailable` without a controller."""
        report = self._control.report(time.monotonic())
        return _no_controller() if report is None else report

    async def on_report(self, request: Request) -> Response:
        """Store the report, complete its commands, and return the pending ones."""
        try:
            report = self._reports.decode(await read_json(request, _MAX_REPORT_BYTES))
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"Invalid report: {error}.", code="invalid_report") from None
        pending, results = self._control.on_report(report, time.monotonic())
        self._services.tracker.reject_unservable()
        for result in results:
            future, received = self._waiting[result.id]
            received.append(result)
            if not future.done():
                future.set_result(None)
        return json_response(pending)

    async def on_agent_exchange(self, request: Request) -> Response:
        """Only the controller has the internal token, so only it gives orders."""
        if request.state.caller.owner != INTERNAL:
            raise Forbidden("Only the controller gives orders to machines.")
        try:
            exchange = self._exchanges.decode(await read_json(request, _MAX_REPORT_BYTES))
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"Invalid orders: {error}.", code="invalid_report") from None
        return json_response(self._services.scheduler.exchange_with_agents(exchange))

    def decisions(self, model: str | None, limit: str, before: str | None) -> Response:
        self.check_served(model)
        max_items = _number("limit", limit, MAX_DECISIONS)
        return json_response(
            self._control.page(model, None if before is None else _number("before", before), max_items)
        )

    def check_served(self, *models: str | None) -> None:
        """Raises `ModelNotFound`."""
        for model in models:
            if model is not None and model not in self._services.settings.models:
                raise model_not_found(model, self._services.settings)

    def check_bounds(self, model: str, workers: int) -> None:
        """Raises `ModelNotFound`, `Unavailable`, and `InvalidRequest` outside of the model's bounds."""
        self.check_served(model)
        bounds = self._control.models(time.monotonic()).get(model)
        if bounds is None:
            _no_controller()
        if not bounds.min_workers <= workers <= bounds.max_workers:
            allowed = f"min_workers ({bounds.min_workers}) and max_workers ({bounds.max_workers})"
            text = f"Invalid value for 'workers': {workers}. Must be between {allowed} of '{model}'."
            raise InvalidRequest(text, param="workers")

    async def run_command(self, request: Request, command: Command) -> Response:
        """Send the command and wait for the controller's result."""
        self.report()
        command_id, received = uuid.uuid4().hex, list[CommandResult]()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._control.order(command_id, command)
        except TooManyCommands:
            text = f"{MAX_PENDING_COMMANDS} commands are already pending."
            raise TooBusy(text, code="too_many_orders", retry_after_s=1) from None
        self._waiting[command_id] = future, received
        try:
            async with asyncio.timeout(_COMMAND_TIMEOUT_S):
                await wait_first(request, future)
        except TimeoutError:
            text = f"The controller did not answer within {_COMMAND_TIMEOUT_S:g} s; the command may still be applied."
            raise TimedOut(text, code="controller_silent") from None
        finally:
            self._control.withdraw(command_id)
            del self._waiting[command_id]
        [result] = received
        if result.error:
            raise InvalidRequest(result.error, param=result.param, code="refused_by_controller")
        return json_response(OrderDone(result.applied, result.rolling, result.needs_restart))


def _no_controller() -> NoReturn:
    raise Unavailable(
        "No controller has reported recently. Start it with `python -m controller`.",
        code="no_controller",
        retry_after_s=2,
    )


def _number(param: str, text: str, maximum: int = 10**12) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and 1 <= int(text) <= maximum):
        raise InvalidRequest(
            f"Invalid value for '{param}': {shorten(text)}. Must be between 1 and {maximum}.", param=param
        )
    return int(text)
