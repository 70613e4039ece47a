"""`engine: text` on the built-in model, in real workers: a killed worker changes no text."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from scripts.harness.balancer import Server, running
from scripts.harness.processes import PATIENCE_S, wait_until
from tests.support.texts import client

STREAMS, TOKENS = 16, 120
#: Every other text is sampled. `ignore_eos` makes all of them long.
OPTIONS: list[dict[str, Any]] = [
    {"seed": seed, "temperature": 1.0 if seed % 2 else 0.0, "max_tokens": TOKENS, "extra_body": {"ignore_eos": True}}
    for seed in range(STREAMS)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = {"engine": "text", "path": "builtin:tiny-text", "max_batch_size": 16, "warm_up": {"measure_s": 0}}
    with running(tmp_path_factory.mktemp("text"), {"tiny": model}, 2) as started:
        yield started


def stream(api: openai.OpenAI, number: int) -> Iterator[str]:
    messages = [{"role": "user", "content": f"Count to {number + 2}. " * (number + 1)}]
    create: Any = api.chat.completions.create
    chunks = create(model="tiny", messages=messages, stream=True, **OPTIONS[number])
    return (chunk.choices[0].delta.content or "" for chunk in chunks)


def test_killed_worker_changes_no_text(server: Server) -> None:
    api = client(server.base_url)
    undisturbed = ["".join(stream(api, number)) for number in range(STREAMS)]
    begun = threading.Barrier(STREAMS + 1, timeout=PATIENCE_S)

    def read(number: int) -> str:
        parts: list[str] = []
        for part in stream(api, number):
            parts.append(part)
            if len(parts) == 10:
                begun.wait()
        return "".join(parts)

    with ThreadPoolExecutor(STREAMS) as pool:
        texts = [pool.submit(read, number) for number in range(STREAMS)]
        begun.wait()
        held = {worker.worker: worker.running + worker.assigned for worker in server.snapshot().workers}
        victim = max(held, key=lambda name: held[name])
        os.kill(server.workers[victim].pid, signal.SIGKILL)
        assert [text.result(PATIENCE_S) for text in texts] == undisturbed
    assert held[victim] >= 1


def test_cancelled_text_frees_its_blocks(server: Server) -> None:
    api = client(server.base_url)

    def used_blocks() -> int:
        return sum(worker.text.used_blocks for worker in server.snapshot().workers if worker.text is not None)

    wait_until(lambda: used_blocks() == 0, "no block in use")
    chunks: Any = api.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Count to 9."}],
        stream=True,
        max_tokens=900,
        extra_body={"ignore_eos": True},
    )
    next(iter(chunks))
    wait_until(lambda: used_blocks() > 0, "blocks in use")
    chunks.close()
    wait_until(lambda: used_blocks() == 0, "no block in use after its client has left")
