"""One server for all tests that only talk to it: four simulated models with a worker each, and one without."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S

#: A slow image takes about a minute and would outlast every test: only cancelling ends it.
MODELS = {
    "quick": sim(),
    "slow": sim(t0_s=0.1, max_batch_size=1, defaults={"size": "64x64", "steps": 600}),
    "absent": sim(),
    "echo": {
        "engine": "sim",
        "max_batch_size": 4,
        "api_path": "/echo",
        "embeddings": True,
        "sim": {"task": "call", "t0_s": 0.002, "t1_s": 0.0005, "load_s": 0.0},
    },
    "words": {
        "engine": "sim",
        "max_batch_size": 8,
        "sim": {"task": "text", "t0_s": 0.002, "t1_s": 0.0002, "load_s": 0.0},
        "text": {"limits": {"max_tokens": 20_000, "max_messages": 8, "max_tools": 3, "max_schema_bytes": 300}},
    },
}
SERVER = {"max_n": 5, "max_body_bytes": 20_000, "max_upload_bytes": 500_000, "max_prompt_chars": 500}
MAX_QUEUED = 5
#: Adapters of the quick model, and files beside them that are none.
LORAS = ["fog", "ink"]
NO_LORAS = ["notes.txt", ".hidden.safetensors", "sp ace.safetensors"]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("shared")
    folder = tmp_path_factory.mktemp("adapters")
    for name in [*[f"{lora}.safetensors" for lora in LORAS], *NO_LORAS]:
        (folder / name).touch()
    (folder / "folder.safetensors").mkdir()
    models = MODELS | {"quick": MODELS["quick"] | {"loras": str(folder)}}
    workers = {"quick": 1, "slow": 1, "echo": 1, "words": 1}
    with running(data_dir, models, workers, server=SERVER, queue={"max_tasks": MAX_QUEUED}) as server:
        yield server
        assert server.balancer.poll() is None, server.logs()
        assert "Traceback" not in server.log("loadbalancer")


@pytest.fixture
def http(shared: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared.base_url, timeout=PATIENCE_S) as client:
        yield client
