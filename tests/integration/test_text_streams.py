"""Streams of texts whose worker dies: none has a token twice, and none lacks one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.conftest import StartServer
from tests.support.texts import chat_body, client, expected_text, texts_despite_dead_worker

STREAMS, TOKENS = 16, 300
WORDS = {
    "engine": "sim",
    "max_batch_size": STREAMS // 4,
    "sim": {"task": "text", "t0_s": 0.01, "t1_s": 0.0, "load_s": 0.0},
}


def test_streams_survive_the_death_of_a_worker(server: StartServer) -> None:
    running = server({"words": WORDS}, workers=2)
    api = client(running.base_url)

    def stream(seed: int) -> Iterator[str]:
        chunks: Any = api.chat.completions.create(**chat_body(seed=seed, max_tokens=TOKENS, stream=True))
        return (chunk.choices[0].delta.content or "" for chunk in chunks)

    texts = texts_despite_dead_worker(running, stream, STREAMS, before=20)
    assert texts == [expected_text(seed, TOKENS) for seed in range(STREAMS)]
