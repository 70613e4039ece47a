"""The scaling API. The test acts as the controller: it sends reports and receives commands."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import pytest

from configs.paths import internal_token
from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S
from tests.conftest import StartServer
from wire.scaling import (
    CommandResult,
    ControllerReport,
    DecisionPage,
    DecisionRecord,
    ModelRecord,
    OverrideRecord,
    Pause,
    PendingCommand,
    PendingCommands,
    Reload,
    Resume,
    Scale,
)

MODEL = ModelRecord(
    "m",
    1,
    4,
    2,
    2,
    1,
    1,
    0,
    "queue_depth",
    "because",
    {"z": 1.5},
    override=OverrideRecord(2, 1234.0),
    blocked_kind="memory",
    crashes_by_kind={"killed": 2},
)


def report(
    *decisions: DecisionRecord, obeyed: tuple[CommandResult, ...] = (), paused: float | None = None
) -> ControllerReport:
    last = max((one.number for one in decisions), default=0)
    return ControllerReport(1.0, 2.0, (MODEL,), (), (), paused, 0, decisions, last, obeyed)


def decision(number: int, model: str, desired: int) -> DecisionRecord:
    return DecisionRecord(number, 5.0, model, "tick", 1, 1, desired, True, "because", {"z": float(number)})


class Desk:
    """A balancer without a controller, and methods that act as the controller."""

    def __init__(self, server: Server) -> None:
        self.server = server
        headers = {"authorization": f"Bearer {internal_token(server.data_dir)}"}
        self.http = httpx.Client(base_url=server.base_url, headers=headers, timeout=PATIENCE_S)

    def tell(self, content: ControllerReport) -> PendingCommands:
        answer = self.http.post("/internal/controller", content=msgspec.json.encode(content))
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=PendingCommands)

    def order(self, verb: str, body: dict[str, Any] | None) -> httpx.Response:
        return self.http.post(f"/internal/{verb}", content=b"" if body is None else msgspec.json.encode(body))


MODELS = {"m": sim(), "n": sim()}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with running(tmp_path_factory.mktemp("desk"), MODELS, 0) as server:
        made = Desk(server)
        with made.http:
            yield made


@pytest.fixture
def fresh(server: StartServer) -> Iterator[Desk]:
    """Start a separate balancer, for tests that depend on all earlier reports."""
    made = Desk(server(models=MODELS, workers=0))
    with made.http:
        yield made


def error(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    detail = answer.json()["error"]
    return answer.status_code, detail["param"], detail["code"]


def test_command_without_controller_returns_503(fresh: Desk) -> None:
    assert error(fresh.http.get("/internal/controller")) == (503, None, "no_controller")
    for verb, body in (("scale", {"model": "m", "workers": 1}), ("pause", None), ("resume", None), ("reload", None)):
        assert error(fresh.order(verb, body)) == (503, None, "no_controller")
    assert fresh.http.get("/internal/decisions").json() == {"decisions": [], "has_more": False}
    assert "muster_controller_up 0.0" in fresh.http.get("/metrics").text


def test_controller_report_is_returned(fresh: Desk) -> None:
    answer = fresh.tell(report(decision(1, "m", 2), decision(2, "n", 1), decision(3, "m", 0), paused=7.0))
    assert answer == PendingCommands([], 3)
    returned = msgspec.json.decode(fresh.http.get("/internal/controller").content, type=ControllerReport)
    assert (returned.models, returned.paused_since) == ((MODEL,), 7.0)

    def page(**query: str | int) -> tuple[list[int], bool]:
        content = fresh.http.get("/internal/decisions", params=query).content
        found = msgspec.json.decode(content, type=DecisionPage)
        return [one.number for one in found.decisions], found.has_more

    assert page() == ([3, 2, 1], False)
    assert page(limit=2) == ([3, 2], True)
    assert page(limit=2, before=2) == ([1], False)
    assert page(model="m", limit=1) == ([3], True)
    metrics = fresh.http.get("/metrics").text
    for line in (
        'muster_workers_desired{model="m"} 2.0',
        'muster_workers_ready{model="m"} 1.0',
        'muster_scaling_override{model="m"} 1.0',
        'muster_workers_starting{model="m"} 1.0',
        'muster_scaling_blocked_kind{kind="memory",model="m"} 1.0',
        'muster_worker_crashes_total{kind="killed",model="m"} 2.0',
        'muster_decision_input{input="z",model="m"} 1.5',
        'muster_decisions_total{direction="up",model="m"} 1.0',
        'muster_decisions_total{direction="stay",model="n"} 1.0',
        "muster_scaling_paused 1.0",
    ):
        assert line in metrics


@pytest.mark.parametrize(
    ("verb", "body", "expected", "message"),
    [
        ("scale", {"model": "x", "workers": 1}, (404, "model", "model_not_found"), "Served: 'm', 'n'"),
        ("scale", {"model": "m", "workers": 5}, (400, "workers", "invalid_value"), "max_workers (4) of 'm'"),
        ("scale", {"model": "m", "workers": 0}, (400, "workers", "invalid_value"), "min_workers (1)"),
        ("scale", {"model": "m", "workers": -1}, (400, "workers", "invalid_value"), "at least 0"),
        ("scale", {"model": "m", "workers": "2"}, (400, "workers", "invalid_type"), "an integer"),
        ("scale", {"model": "m"}, (400, "workers", "missing_required_parameter"), "'workers'"),
        ("scale", {"model": "m", "workers": 2, "hold_s": 0}, (400, "hold_s", "invalid_value"), "greater than 0"),
        ("scale", {"model": "m", "workers": 2, "hold_s": 1e9}, (400, "hold_s", "invalid_value"), "at most 2592000"),
        ("scale", {"model": "m", "workers": 2, "hold": 5}, (400, "hold", "unknown_parameter"), "'hold_s'"),
        ("scale", None, (400, "model", "missing_required_parameter"), "'model'"),
        ("pause", {"model": "m"}, (400, "model", "unknown_parameter"), "'model'"),
        ("resume", {"model": "x"}, (404, "model", "model_not_found"), "does not exist"),
        ("reload", {"models": ["m", "x"]}, (404, "model", "model_not_found"), "does not exist"),
        ("reload", {"models": "m"}, (400, "models", "invalid_type"), "a list"),
    ],
)
def test_invalid_command_is_not_sent_to_controller(
    desk: Desk, verb: str, body: dict[str, Any] | None, expected: tuple[int, str, str], message: str
) -> None:
    desk.tell(report())
    answer = desk.order(verb, body)
    assert error(answer) == expected
    assert message in answer.json()["error"]["message"]
    assert desk.tell(report()).commands == []


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "1001"}, {"limit": "x"}, {"limit": "٣"}, {"before": "0"}, {"before": "-1"}]
)
def test_invalid_page_returns_400(desk: Desk, query: dict[str, str]) -> None:
    answer = desk.http.get("/internal/decisions", params=query)
    assert error(answer) == (400, next(iter(query)), "invalid_value")


@pytest.mark.parametrize(
    ("query", "code"), [("since=3", "unknown_parameter"), ("limit=3&limit=4", "duplicate_parameter")]
)
def test_unknown_parameter_of_a_page_returns_400(desk: Desk, query: str, code: str) -> None:
    assert error(desk.http.get(f"/internal/decisions?{query}")) == (400, query.partition("=")[0], code)


def test_decisions_of_unknown_model_return_404(desk: Desk) -> None:
    assert error(desk.http.get("/internal/decisions", params={"model": "x"})) == (404, "model", "model_not_found")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"time": "x"}'])
def test_invalid_report_returns_400(desk: Desk, content: bytes) -> None:
    assert error(desk.http.post("/internal/controller", content=content)) == (400, None, "invalid_report")


@pytest.mark.parametrize(
    ("verb", "body", "order"),
    [
        ("scale", {"model": "m", "workers": 3, "hold_s": 90}, Scale("m", 3, 90.0)),
        ("scale", {"model": "m", "workers": 1}, Scale("m", 1, 600.0)),
        ("pause", None, Pause()),
        ("resume", None, Resume()),
        ("resume", {"model": "m"}, Resume("m")),
        ("reload", {}, Reload()),
        ("reload", {"models": ["n", "m"]}, Reload(("n", "m"))),
    ],
)
def test_command_waits_for_the_controller_result(
    desk: Desk, verb: str, body: dict[str, Any] | None, order: object
) -> None:
    def obey(one: PendingCommand) -> CommandResult:
        assert one.command == order
        return CommandResult(one.id, applied=("a",), rolling=("b", "c"), needs_restart=("d",))

    answer = ordered(desk, verb, body, obey)
    assert answer.status_code == 200
    assert answer.json() == {"applied": ["a"], "rolling": ["b", "c"], "needs_restart": ["d"]}
    assert desk.tell(report()).commands == [], "it is handed out no more"


def test_command_rejected_by_controller_returns_its_reason(desk: Desk) -> None:
    answer = ordered(desk, "reload", None, lambda one: CommandResult(one.id, "muster.yaml:3: a.b = 0: no", "models"))
    assert error(answer) == (400, "models", "refused_by_controller")
    assert answer.json()["error"]["message"] == "muster.yaml:3: a.b = 0: no"


def ordered(
    desk: Desk, verb: str, body: dict[str, Any] | None, obey: Callable[[PendingCommand], CommandResult]
) -> httpx.Response:
    """Send a command, and execute it as the controller: one report receives it, the next one answers."""
    desk.tell(report())
    with ThreadPoolExecutor(1) as people:
        answer: Future[httpx.Response] = people.submit(desk.order, verb, body)
        again = threading.Event()
        while not answer.done() and not (orders := desk.tell(report()).commands):
            again.wait(0.05)
        assert not answer.done(), answer.result().text
        [one] = orders
        desk.tell(report(obeyed=(obey(one),)))
        return answer.result(PATIENCE_S)


@pytest.mark.parametrize("path", ["/internal/scale", "/internal/pause", "/internal/controller", "/internal/decisions"])
def test_scaling_api_requires_admin_scope(desk: Desk, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}):
        answer = httpx.post(f"{desk.server.base_url}{path}", headers=headers, timeout=PATIENCE_S)
        assert error(answer)[0] == 401


def test_openapi_document_describes_scaling(desk: Desk) -> None:
    document = desk.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for verb, name in (("scale", "Scale"), ("pause", "Pause"), ("resume", "Resume"), ("reload", "Reload")):
        body = document["paths"][f"/internal/{verb}"]["post"]["requestBody"]
        assert body["content"]["application/json"]["schema"]["$ref"].endswith(f"/{name}Request")
        assert f"{name}Request" in schemas
    assert {"ControllerReport", "DecisionPage", "DecisionRecord", "ModelRecord", "OrderDone"} <= schemas.keys()
    assert "post" not in document["paths"]["/internal/controller"], "that is between programs"
