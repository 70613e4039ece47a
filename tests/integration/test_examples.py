"""The examples, all models in one server: each answers, and a sampler in steps survives its worker's death."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
import yaml

from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S, ROOT

EXAMPLES = ROOT / "examples"
CONFIGURATIONS = sorted(EXAMPLES.rglob("muster.yaml"))


def models_of(file: Path) -> dict[str, Any]:
    """Return the models of an example, with the paths of their engines resolved."""
    models: dict[str, Any] = yaml.safe_load(file.read_text())["models"]
    for model in models.values():
        if ".py:" in model["engine"]:
            model["engine"] = str(file.parent / model["engine"])
    return models


def module_of(example: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{example}", EXAMPLES / example / "engine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    models = {name: model for file in CONFIGURATIONS for name, model in models_of(file).items()}
    for name, model in models.items():
        model |= {
            "scaling": {"min_workers": 2 if name == "langevin" else 1, "max_workers": 2},
            "warm_up": {"measure_s": 0},
        }
    instance = Instance(tmp_path_factory.mktemp("examples"), {"models": models, "devices": {"cpu_slots": 8}})
    try:
        instance.until_workers(len(models) + 1)
        yield instance
    finally:
        instance.end()


def post(server: Instance, path: str, **request: Any) -> httpx.Response:
    answer = httpx.post(f"{server.url}{path}", timeout=PATIENCE_S, **request)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("digit", ["three", "seven"])
def test_generated_digit_is_classified(server: Instance, digit: str) -> None:
    request = {"prompt": f"an orange {digit} on navy paper", "seed": 3, "num_inference_steps": 20}
    image = post(server, "/v1/images/generations", json=request, headers={"accept": "image/png"})
    found = post(
        server, "/v1/models/classifier:predict", content=image.content, headers={"content-type": "image/png"}
    ).json()["predictions"][0]
    assert found["digit"] == {"three": 3, "seven": 7}[digit]
    assert sum(found["probabilities"]) == pytest.approx(1, abs=0.01)


def test_similar_sentences_have_similar_vectors(server: Instance) -> None:
    texts = ["Send bytes over the connection.", "Open a network socket to a server.", "Remove a folder with its files."]
    found = np.array(post(server, "/v1/models/embeddings:predict", json={"instances": texts}).json()["predictions"])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert found[0] @ found[1] > 0.4 > found[0] @ found[2]


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_openai_client_gets_embeddings(server: Instance, encoding: Any) -> None:
    api = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)
    texts = ["read a file", "open a file", "sort a list"]
    plain = post(server, "/v1/models/embeddings:predict", json={"instances": texts}).json()["predictions"]
    answer = api.embeddings.create(model="embeddings", input=texts, encoding_format=encoding)
    assert [item.index for item in answer.data] == [0, 1, 2]
    found = [item.embedding for item in answer.data]
    if encoding == "base64":
        found = [np.frombuffer(base64.b64decode(str(each)), "<f4") for each in found]  # type: ignore[misc]
    np.testing.assert_allclose(found, plain, rtol=1e-6)
    assert api.embeddings.create(model="embeddings", input="read a file").data[0].embedding
    for wrong, text in (
        ({"input": ["file", "qqq"]}, r"input\[1\]: the text has no word"),
        ({"dimensions": 3}, "have 64"),
    ):
        with pytest.raises(openai.BadRequestError, match=text):
            api.embeddings.create(**{"model": "embeddings", "input": "file"} | wrong)


def test_litserve_class_answers_at_its_own_path(server: Instance) -> None:
    assert post(server, "/predict-number", json={"input": 4}).json() == {"output": 4**2 + 4**3}


async def test_sampler_goes_on_when_its_worker_dies(server: Instance) -> None:
    request = {"points": 50, "steps": 6000, "seed": 5}
    body = {"instances": [request]}
    killed = asyncio.Event()
    busy: list[Any] = []

    async def user(client: httpx.AsyncClient) -> list[httpx.Response]:
        """Send one request after the other, however fast they are answered, so that the worker dies within some."""
        answers: list[httpx.Response] = []
        while not answers or not killed.is_set():
            answers.append(await client.post("/v1/models/langevin:predict", json=body))
        return answers

    def is_busy() -> bool:
        busy[:] = [worker for worker in running(server) if worker.counters.steps > 1000]
        return bool(busy)

    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
        users = [asyncio.create_task(user(client)) for _ in range(4)]
        await asyncio.to_thread(server.until, is_busy, "a worker with tasks")
        psutil.Process(busy[0].pid).send_signal(signal.SIGKILL)
        killed.set()
        answers = [answer for answered in await asyncio.gather(*users) for answer in answered]
    assert {answer.status_code for answer in answers} == {200}
    engine = module_of("langevin")
    sampler, walk = engine.RingSampler(), engine.RingSampler().start(engine.Request(**request))
    for _ in range(request["steps"]):
        sampler.step([walk])
    for answer in answers:
        assert np.array(answer.json()["predictions"][0]) == pytest.approx(walk.points, abs=1e-9)


def running(server: Instance) -> list[Any]:
    return [worker for worker in server.workers() if worker.model == "langevin" and worker.running]
