"""The route of the page's simulator: replays a model's traffic with other settings. It requires the scope `admin`."""

from __future__ import annotations

import string
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from configs.paths import run_dir
from loadbalancer.api.event_stream import ServerSentEvents
from loadbalancer.api.http_helpers import read_json, run_while_connected
from loadbalancer.api.page_access import check_page_access
from loadbalancer.generation.validation import model_not_found
from loadbalancer.page.measured_workers import measured_workers
from loadbalancer.page.settings_simulator import SimulationFailed, SimulationProcess, SimulationRunning
from loadbalancer.schema.errors import ApiError, InternalError, InvalidRequest, TooBusy, Unavailable
from loadbalancer.schema.parsing import parse
from loadbalancer.schema.simulation import SimulateRequest
from loadbalancer.schema.stream_events import encode_error
from loadbalancer.services import Services
from wire.simulation import RunSettings, SimulatedTraffic, SimulationReply, SimulationRequest

_DAY_S = 86_400
#: Name of the run with the present settings. The alternatives are A, B, C, D.
CURRENT = "current"


def router(services: Services) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    def of_page(request: Request) -> None:
        check_page_access(services, request)

    @routes.post("/ui/simulate", dependencies=[Depends(of_page)])
    async def simulate(request: Request) -> Response:
        """Replay recorded or invented traffic with the present and with other settings."""
        body = parse(SimulateRequest, await read_json(request, services.settings.server.max_body_bytes))
        asked = _request(services, body)
        try:
            process = await run_while_connected(request, services.simulator.start(asked))
        except SimulationRunning:
            text = "Another simulation is running."
            raise TooBusy(text, code="simulation_running", retry_after_s=5) from None
        except SimulationFailed as failure:
            raise _error(failure) from None
        return ServerSentEvents(_events(services, body.model, process), process.kill)

    return routes


def _request(services: Services, body: SimulateRequest) -> SimulationRequest:
    """Return what the process is asked. Raises `ModelNotFound`, `Unavailable` and `InvalidRequest`."""
    settings, now = services.settings, time.time()
    if body.model not in settings.models:
        raise model_not_found(body.model, settings)
    record = services.control.models(time.monotonic()).get(body.model)
    config = run_dir(settings.data_dir) / "config.yaml"
    if record is None or not config.exists():
        raise Unavailable(
            "No controller has reported recently. Start it with `python -m controller`.",
            code="no_controller",
            retry_after_s=2,
        )
    stats = next(each for each in services.scheduler.snapshot().models if each.model == body.model)
    names = [CURRENT, *string.ascii_uppercase[: len(body.alternatives)]]
    fields: list[dict[str, Any]] = [{}, *(each.scaling_fields() for each in body.alternatives)]
    return SimulationRequest(
        config=str(config),
        model=body.model,
        runs=[RunSettings(name, one) for name, one in zip(names, fields, strict=True)],
        since=now - 3600 * body.hours,
        until=now,
        logs=_logs(services) if body.source == "recorded" else [],
        max_workers=max(record.max_workers, 1),
        batch=stats.batch_cap or 1,
        batch_slowdown=stats.batch_slowdown,
        cold_start_s=record.cold_start_s,
    )


def _logs(services: Services) -> list[str]:
    """Return the arrival logs that are there, the older one first. Raises `InvalidRequest`."""
    server, folder = services.settings.server, services.settings.data_dir
    if server.record_arrivals is None:
        text = "This server records no arrivals: set server.record_arrivals."
        raise InvalidRequest(text, param="source", code="no_record")
    newest = folder / server.record_arrivals
    found = [str(log) for log in (newest.with_name(f"{newest.name}.1"), newest) if log.exists()]
    if not found:
        raise InvalidRequest("No request was recorded yet.", param="source", code="no_record")
    return found


async def _events(services: Services, model: str, process: SimulationProcess) -> AsyncIterator[bytes]:
    try:
        async for reply in process.replies():
            yield _event(services, model, reply)
    except SimulationFailed as failure:
        yield encode_error(_error(failure))


def _event(services: Services, model: str, reply: SimulationReply) -> bytes:
    body = msgspec.to_builtins(reply)
    if isinstance(reply, SimulatedTraffic) and reply.measured is not None:
        past = services.page.points(model, min(max(int(time.time() - reply.start) + 1, 1), _DAY_S))
        found = measured_workers(past, reply.start, reply.step_s, len(reply.arrivals))
        body["measured"] |= found._asdict()
    return b"event: simulation\ndata: %b\n\n" % msgspec.json.encode(body)


def _error(failure: SimulationFailed) -> ApiError:
    if failure.is_refused:
        return InvalidRequest(str(failure), code="cannot_simulate")
    return InternalError(str(failure), code="simulation_failed")
