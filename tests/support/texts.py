"""Requests to language models, by OpenAI's client and without it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai

from scripts.harness.balancer import Server
from scripts.harness.processes import PATIENCE_S
from worker.engines.sim_text import expected_text as expected_text  # for the tests of the simulated engine

CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"
RESPOND = "/v1/responses"


def client(base_url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)


def chat_body(text: str = "hello", **options: Any) -> dict[str, Any]:
    return {"model": "words", "messages": [{"role": "user", "content": text}]} | options


def events(answer: httpx.Response) -> list[Any]:
    """Return the decoded events of a stream; the last of a complete one is `[DONE]`."""
    found: list[Any] = []
    for line in answer.text.splitlines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def texts_despite_dead_worker(
    server: Server, stream: Callable[[int], Iterator[str]], count: int, before: int
) -> list[str]:
    """Read the streams 0 to `count` - 1 at once, and return their texts.

    The worker with the most texts is killed when a quarter of the streams have had `before` parts. With batches of that
    size at most, it then has texts under way, however fast it is.
    """
    begun = threading.Semaphore(0)

    def read(number: int) -> str:
        parts: list[str] = []
        for part in stream(number):
            parts.append(part)
            if len(parts) == before:
                begun.release()
        return "".join(parts)

    with ThreadPoolExecutor(count) as pool:
        texts = [pool.submit(read, number) for number in range(count)]
        for _ in range(count // 4):
            assert begun.acquire(timeout=PATIENCE_S), "a stream has begun"
        held = {worker.worker: worker.running + worker.assigned for worker in server.snapshot().workers}
        victim = max(held, key=lambda name: held[name])
        os.kill(server.workers[victim].pid, signal.SIGKILL)
        found = [text.result(PATIENCE_S) for text in texts]
    assert held[victim] >= 1
    return found
