"""How many workers there are, why, and how people change it. The gate lets in administrators and the controller."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Annotated, NoReturn, TypeVar

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from loadbalancer.api.http_helpers import json_response, read_body, wait_first
from loadbalancer.api.openapi import request_body, responses
from loadbalancer.generation.validation import model_not_found
from loadbalancer.scaling.control_plane import MAX_PENDING_COMMANDS, ControlPlane, TooManyCommands
from loadbalancer.schema.errors import InvalidRequest, TimedOut, TooBusy, Unavailable
from loadbalancer.schema.parsing import parse, shorten
from loadbalancer.schema.scaling import PauseRequest, ReloadRequest, ResumeRequest, ScaleRequest
from loadbalancer.services import Services
from wire.scaling import (
    MAX_DECISIONS,
    Command,
    CommandResult,
    ControllerReport,
    OrderDone,
    Pause,
    Reload,
    Resume,
    Scale,
)

Body = TypeVar("Body", bound=BaseModel)

#: A report of a thousand models and ten thousand workers has room in it.
_LARGEST_REPORT = 16 << 20
#: The controller looks each second, and a configuration is read in a moment.
_OBEYED_WITHIN_S = 15.0
_DECISIONS = responses("DecisionPage", 400, 404)


def router(services: Services) -> APIRouter:
    """The routes about scaling."""
    routes = APIRouter(tags=["scaling"])
    api = _ScalingApi(services)

    @routes.get(
        "/internal/controller", summary="Get the controller's report", responses=responses("ControllerReport", 503)
    )
    async def controller() -> Response:
        """The newest report: models, workers, devices, and what is held or paused."""
        return json_response(api.report())

    @routes.post("/internal/controller", include_in_schema=False)
    async def report(request: Request) -> Response:
        """The controller reports, and is handed what was ordered."""
        return await api.on_report(request)

    @routes.get("/internal/decisions", summary="List decisions", responses=_DECISIONS)
    async def decisions(
        model: Annotated[str | None, Query(description="Only this model's.")] = None,
        limit: Annotated[str, Query(description=f"Most decisions of a page, 1 to {MAX_DECISIONS}.")] = "100",
        before: Annotated[str | None, Query(description="Number of the last decision of the page before.")] = None,
    ) -> Response:
        """How many workers each model should have and why, the newest first."""
        return api.decisions(model, limit, before)

    scaled = responses("OrderDone", 400, 404, 413, 429, 503, 504)

    @routes.post(
        "/internal/scale",
        summary="Hold a number of workers",
        openapi_extra=request_body("ScaleRequest"),
        responses=scaled,
    )
    async def scale(request: Request) -> Response:
        """Give a model so many workers for some time, whatever its policy would say."""
        asked = await api.read(ScaleRequest, request)
        api.check_bounds(asked.model, asked.workers)
        return await api.run_command(request, Scale(asked.model, asked.workers, asked.hold_s))

    @routes.post(
        "/internal/pause", summary="Stop deciding", openapi_extra=request_body("PauseRequest"), responses=scaled
    )
    async def pause(request: Request) -> Response:
        """Leave every number of workers as it is. Workers that die are still replaced."""
        await api.read(PauseRequest, request)
        return await api.run_command(request, Pause())

    @routes.post(
        "/internal/resume", summary="Decide again", openapi_extra=request_body("ResumeRequest"), responses=scaled
    )
    async def resume(request: Request) -> Response:
        """End the pause and what is held."""
        asked = await api.read(ResumeRequest, request)
        api.check_served(asked.model)
        return await api.run_command(request, Resume(asked.model))

    @routes.post(
        "/internal/reload",
        summary="Read the configuration again",
        openapi_extra=request_body("ReloadRequest"),
        responses=scaled,
    )
    async def reload(request: Request) -> Response:
        """Apply what has changed in the configuration: at once, or worker by worker. A bad one changes nothing."""
        asked = await api.read(ReloadRequest, request)
        api.check_served(*asked.models)
        return await api.run_command(request, Reload(asked.models))

    return routes


class _ScalingApi:
    """What the routes share."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._control: ControlPlane = services.control
        self._waiting: dict[str, tuple[asyncio.Future[None], list[CommandResult]]] = {}
        self._reports = msgspec.json.Decoder(ControllerReport)

    async def read(self, kind: type[Body], request: Request) -> Body:
        """The body, of which nothing is needed where all has a default."""
        body = await read_body(request, self._services.settings.server.max_body_bytes)
        return parse(kind, body.strip() or b"{}")

    def report(self) -> ControllerReport:
        """Raises `Unavailable` where no controller is there."""
        report = self._control.report(time.monotonic())
        return _no_controller() if report is None else report

    async def on_report(self, request: Request) -> Response:
        """Take in what the controller reports."""
        try:
            report = self._reports.decode(await read_body(request, _LARGEST_REPORT))
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"The report is not one: {error}.", code="invalid_report") from None
        orders, done = self._control.on_report(report, time.monotonic())
        for run_command in done:
            future, told = self._waiting[run_command.id]
            told.append(run_command)
            if not future.done():
                future.set_result(None)
        return json_response(orders)

    def decisions(self, model: str | None, limit: str, before: str | None) -> Response:
        """A page of decisions."""
        self.check_served(model)
        most = _number("limit", limit, MAX_DECISIONS)
        return json_response(self._control.page(model, None if before is None else _number("before", before), most))

    def check_served(self, *models: str | None) -> None:
        """Raises `ModelNotFound`."""
        for model in models:
            if model is not None and model not in self._services.settings.models:
                raise model_not_found(model, self._services.settings)

    def check_bounds(self, model: str, workers: int) -> None:
        """Raises `ModelNotFound`, `Unavailable`, and `InvalidRequest` outside of what the model may have."""
        self.check_served(model)
        known = self._control.models(time.monotonic()).get(model)
        if known is None:
            _no_controller()
        if not known.min_workers <= workers <= known.max_workers:
            bounds = f"min_workers ({known.min_workers}) and max_workers ({known.max_workers})"
            text = f"Invalid value for 'workers': {workers}. Must be between {bounds} of '{model}'."
            raise InvalidRequest(text, param="workers")

    async def run_command(self, request: Request, order: Command) -> Response:
        """What the controller made of the order."""
        self.report()
        number, told = uuid.uuid4().hex, list[CommandResult]()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._control.order(number, order)
        except TooManyCommands:
            text = f"{MAX_PENDING_COMMANDS} orders wait for the controller already."
            raise TooBusy(text, code="too_many_orders", retry_after_s=1) from None
        self._waiting[number] = future, told
        try:
            async with asyncio.timeout(_OBEYED_WITHIN_S):
                await wait_first(request, future)
        except TimeoutError:
            text = f"The controller did not answer within {_OBEYED_WITHIN_S:g} s; the order may yet have been obeyed."
            raise TimedOut(text, code="controller_silent") from None
        finally:
            self._control.withdraw(number)
            del self._waiting[number]
        [done] = told
        if done.error:
            raise InvalidRequest(done.error, param=done.param, code="refused_by_controller")
        return json_response(OrderDone(done.applied, done.rolling, done.needs_restart))


def _no_controller() -> NoReturn:
    raise Unavailable(
        "No controller has reported lately: nothing can be scaled.", code="no_controller", retry_after_s=2
    )


def _number(param: str, text: str, most: int = 10**12) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and 1 <= int(text) <= most):
        raise InvalidRequest(
            f"Invalid value for '{param}': {shorten(text)}. Must be between 1 and {most}.", param=param
        )
    return int(text)
