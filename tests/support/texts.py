"""Requests to language models, by OpenAI's client and without it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai

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
