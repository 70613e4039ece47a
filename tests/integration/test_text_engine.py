"""`engine: text` on the built-in model, in real workers: a killed worker changes no text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from scripts.harness.balancer import Server, running
from scripts.harness.processes import PATIENCE_S, ROOT, wait_until
from tests.support.texts import client, texts_despite_dead_worker

STREAMS, TOKENS = 16, 120
#: Every other text is sampled. `ignore_eos` makes all of them long.
OPTIONS: list[dict[str, Any]] = [
    {"seed": seed, "temperature": 1.0 if seed % 2 else 0.0, "max_tokens": TOKENS, "extra_body": {"ignore_eos": True}}
    for seed in range(STREAMS)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = {"engine": "text", "path": "builtin:tiny-text", "max_batch_size": STREAMS // 4, "warm_up": {"measure_s": 0}}
    with running(tmp_path_factory.mktemp("text"), {"tiny": model}, 2, life={"heartbeat_s": 0.2}) as started:
        yield started


def stream(api: openai.OpenAI, number: int) -> Iterator[str]:
    messages = [{"role": "user", "content": f"Count to {number + 2}. " * (number + 1)}]
    create: Any = api.chat.completions.create
    chunks = create(model="tiny", messages=messages, stream=True, **OPTIONS[number])
    return (chunk.choices[0].delta.content or "" for chunk in chunks)


def test_killed_worker_changes_no_text(server: Server) -> None:
    api = client(server.base_url)
    undisturbed = ["".join(stream(api, number)) for number in range(STREAMS)]
    assert texts_despite_dead_worker(server, lambda number: stream(api, number), STREAMS, before=10) == undisturbed


def test_text_that_waited_for_its_worker_has_the_checkpoints_defaults(tmp_path: Path) -> None:
    """Its model is unknown when it arrives. A temperature of 0 makes all choices equal."""
    shutil.copytree(ROOT / "worker/builtin/tiny-text", tmp_path / "model")
    file = tmp_path / "model/generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.0}))
    model = {"engine": "text", "path": str(tmp_path / "model"), "warm_up": {"measure_s": 0}}
    options = {"n": 4, "seed": 1, "max_tokens": 30, "extra_body": {"ignore_eos": True}}
    with running(tmp_path / "data", {"tiny": model}, 0) as server, ThreadPoolExecutor() as pool:
        create: Any = client(server.base_url).chat.completions.create
        messages = [{"role": "user", "content": "Count to 5."}]
        answer = pool.submit(create, model="tiny", messages=messages, **options)
        wait_until(lambda: server.snapshot().models[0].queued == 4, "four texts that wait")
        server.start_worker("tiny")
        assert len({choice.message.content for choice in answer.result(PATIENCE_S).choices}) == 1


def test_cancelled_text_frees_its_blocks(server: Server) -> None:
    api = client(server.base_url)

    def used_blocks() -> int:
        return sum(worker.text.used_blocks for worker in server.snapshot().workers if worker.text is not None)

    wait_until(lambda: used_blocks() == 0, "no block in use")
    messages = [{"role": "user", "content": "Count to 9."}]
    create: Any = api.chat.completions.create
    streams: list[Any] = []

    def are_used() -> bool:
        """Begin one more text, as those before may have ended already, and look at the last heartbeats."""
        options = {"stream": True, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
        streams.append(create(model="tiny", messages=messages, **options))
        next(iter(streams[-1]))
        return used_blocks() > 0

    wait_until(are_used, "blocks in use")
    for chunks in streams:
        chunks.close()
    wait_until(lambda: used_blocks() == 0, "no block in use after the client has left")
