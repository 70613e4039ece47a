"""Random requests generated from the server's OpenAPI document; every answer must conform to it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from configs.paths import internal_token
from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, wait_until

#: Positive data acceptance is not checked, because a schema cannot express every rule.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 30
SHORT = {"defaults": {"max_tokens": 4}, "limits": {"max_tokens": 32}}


def finished_job(http: httpx.Client) -> str:
    job = http.post("/v1/jobs", json={"path": "/predict", "body": {"prompt": "a seven"}}).json()["id"]
    wait_until(lambda: http.get(f"/v1/jobs/{job}").json()["state"] == "done", "the job")
    return str(job)


def probe(operation: Any, known: dict[str, str], token: str) -> Counter[int]:
    """Send valid and invalid requests. `known` maps path parameters to existing values."""
    statuses: Counter[int] = Counter()
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=st.one_of(operation.as_strategy(), wrong), is_known=st.booleans())
    def ask(case: Any, is_known: bool) -> None:
        for name in case.path_parameters or {}:
            if is_known and name in known:
                case.path_parameters[name] = known[name]
        if case.path.startswith("/internal") and case.method == "GET":
            case.headers = {**(case.headers or {}), "authorization": f"Bearer {token}"}
        answer = case.call(timeout=PATIENCE_S)
        statuses[answer.status_code] += 1
        has_no_controller = case.path.startswith("/internal") and answer.status_code == 503
        case.validate_response(answer, checks=CHECKS[has_no_controller:])

    ask()
    return statuses


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Any:
    # Fast answers: time limits are not tested here.
    quick = sim(t0_s=0.0, t1_s=0.0, max_batch_size=64)
    models: dict[str, Any]
    folder: Path = tmp_path_factory.mktemp("described")
    times = {"task": "call", "t0_s": 0.0, "t1_s": 0.0, "load_s": 0.0}
    models = {"sim": quick, "echo": {"engine": "sim", "max_batch_size": 64, "api_path": "/echo", "sim": times}}
    models["words"] = {"engine": "sim", "max_batch_size": 64, "sim": times | {"task": "text"}, "text": SHORT}
    with running(folder, models, 1, queue={"deadline_slack": None}) as server:
        yield server
        assert server.balancer.poll() is None
        assert "Traceback" not in server.log("loadbalancer")


def test_every_answer_conforms_to_openapi(described: Server, subtests: pytest.Subtests) -> None:
    token = internal_token(described.data_dir)
    answered: Counter[int] = Counter()
    with httpx.Client(base_url=described.base_url, timeout=PATIENCE_S) as http:
        for found in schemathesis.openapi.from_url(f"{described.base_url}/openapi.json").get_all_operations():
            operation: Any = found.ok()  # type: ignore[union-attr]
            takes_calls = operation.path.startswith("/v2") or operation.path.endswith(":predict")
            known = {"model": "echo" if takes_calls else "sim", "job": finished_job(http)}
            with subtests.test(operation.label):
                answered += probe(operation, known, token)
    assert {200, 400, 404} <= answered.keys(), "some random requests are valid and some are not"
