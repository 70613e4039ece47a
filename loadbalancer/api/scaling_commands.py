"""What the routes about scaling do: they pass commands to the controller, and answer from its report."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import NoReturn, TypeVar

import msgspec
from fastapi import Request, Response
from pydantic import BaseModel

from loadbalancer.access.api_keys import INTERNAL
from loadbalancer.api.http_helpers import json_response, read_json, wait_first
from loadbalancer.generation.validation import model_not_found
from loadbalancer.scaling.control_plane import MAX_PENDING_COMMANDS, ControlPlane, TooManyCommands
from loadbalancer.schema.errors import Forbidden, InvalidRequest, TimedOut, TooBusy, Unavailable
from loadbalancer.schema.parsing import parse, shorten
from loadbalancer.services import Services
from wire.agents import AgentExchange
from wire.scaling import MAX_DECISIONS, Command, CommandResult, ControllerReport, OrderDone

Body = TypeVar("Body", bound=BaseModel)

#: Enough for a thousand models and ten thousand workers.
_MAX_REPORT_BYTES = 16 << 20
#: The controller polls each second.
_COMMAND_TIMEOUT_S = 15.0


class ScalingApi:
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
