"""The page's own routes, as a browser uses them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from loadbalancer.page.files import FOLDER
from scripts.harness.balancer import running, sim
from scripts.harness.processes import PATIENCE_S, wait_until


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    models = {"sim": sim(t0_s=0.01), "words": {"engine": "sim", "sim": {"task": "text", "load_s": 0.0}}}
    with (
        running(tmp_path_factory.mktemp("page"), models, 1) as server,
        httpx.Client(base_url=server.base_url, timeout=PATIENCE_S) as client,
    ):
        yield client


def test_every_file_that_the_page_names_is_there(http: httpx.Client) -> None:
    for page in ("/", "/docs"):
        html = http.get(page)
        assert html.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        names = re.findall(r'(?:src|href)="(/ui/[^"]+)"', html.text)
        assert names
        assert {http.get(name).status_code for name in names} == {200}
    home = http.get("/").text
    modules = {file.name for file in FOLDER.glob("*.js")} - {"docs.js"}
    assert modules == set(re.findall(r'"/ui/files/(\w+\.js)"', home))  # all at once, not one after the other
    for module in re.findall(r'from "\.(/[^"]+)"', http.get("/ui/files/app.js").text):
        assert http.get(f"/ui/files{module}").headers["content-type"].startswith("text/javascript")


def test_files_are_sent_once_and_compressed(http: httpx.Client) -> None:
    first = http.get("/ui/files/app.js")
    assert first.headers["content-encoding"] == "gzip"
    again = http.get("/ui/files/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert http.get("/ui/files/nothing.js").json()["error"]["message"] == "The page has no such file."


def test_session_without_keys(http: httpx.Client) -> None:
    session = http.get("/ui/session").json()
    assert (session["owner"], session["keys"]) == ("anonymous", False)
    assert "admin" in session["scopes"]
    assert [(model["name"], model["task"]) for model in session["models"]] == [("sim", "image"), ("words", "text")]


@pytest.mark.parametrize("path", ["/ui/session", "/ui/usage", "/ui/events", "/ui/history?model=sim", "/ui/tasks"])
def test_page_behind_a_proxy_needs_keys(http: httpx.Client, path: str) -> None:
    refused = http.get(path, headers={"x-forwarded-for": "203.0.113.7"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "page_needs_keys")
    assert http.post("/ui/pause", headers={"x-forwarded-for": "203.0.113.7"}).status_code == 403


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ui/history?model=none", 404),
        ("/ui/history?model=sim&span=0", 400),
        ("/ui/history?model=sim&span=1e9", 400),
        ("/ui/tasks?model=none", 404),
        ("/ui/tasks?modle=sim", 400),
        ("/ui/history", 400),
        ("/ui/history?model=sim&spam=60", 400),
    ],
)
def test_wrong_questions_are_explained(http: httpx.Client, path: str, status: int) -> None:
    assert http.get(path).status_code == status


def test_past_and_present_show_a_request(http: httpx.Client) -> None:
    def arrived() -> float:
        return float(sum(http.get("/ui/history?model=sim&span=600").json()["columns"]["arrived"]))

    before = arrived()
    assert http.post("/predict", json={"prompt": "a seven", "num_inference_steps": 20}).status_code == 200
    wait_until(lambda: arrived() > before, "the request in the past")
    with http.stream("GET", "/ui/events") as response:
        lines = response.iter_lines()
        assert next(lines) == "event: state"
        state = json.loads(next(lines).removeprefix("data: "))
        assert state["models"]["sim"]["running"] == 0
        assert {row["state"] for row in state["workers"].values()} == {"ready"}
        assert next(line for line in lines if line.startswith("event")) == "event: changes"
        assert json.loads(next(lines).removeprefix("data: "))["points"]["sim"]["times"]


def test_tasks_are_listed_while_they_run(http: httpx.Client) -> None:
    job = {"path": "/v1/images/generations", "body": {"prompt": "a seven", "num_inference_steps": 1000, "n": 2}}
    accepted = http.post("/v1/jobs", json=job).json()

    rows: list[dict[str, Any]] = []

    def are_listed() -> bool:
        rows[:] = http.get("/ui/tasks?model=sim").json()["tasks"]
        return bool(rows)

    wait_until(are_listed, "the tasks of the job")
    assert {row["owner"] for row in rows} == {"anonymous"}
    assert {row["steps"] for row in rows} <= {1, 1000}
    assert http.get("/ui/tasks?owner=other").json() == {"tasks": [], "total": 0, "limit": 200}
    http.delete(f"/v1/jobs/{accepted['id']}")


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({}, 400, "model"),
        ({"model": "none"}, 404, "model"),
        ({"model": "sim", "hours": 0}, 400, "hours"),
        ({"model": "sim", "trace": "/etc/passwd"}, 400, "trace"),
        ({"model": "sim", "source": "/etc/passwd"}, 400, "source"),
        ({"model": "sim", "alternatives": [{"min_workers": -1}]}, 400, "alternatives[0].min_workers"),
        ({"model": "sim", "alternatives": [{"policy": "os:system"}]}, 400, "alternatives[0].policy"),
        ({"model": "sim", "alternatives": [{}]}, 400, "alternatives"),
        ({"model": "sim", "alternatives": [{"max_workers": 2}] * 5}, 400, "alternatives"),
        ({"model": "sim"}, 503, None),  # no controller
    ],
)
def test_wrong_simulations_are_explained(http: httpx.Client, body: dict[str, Any], status: int, named: str) -> None:
    refused = http.post("/ui/simulate", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, named)
    assert http.post("/ui/simulate", json=body, headers={"x-forwarded-for": "203.0.113.7"}).status_code == 403
