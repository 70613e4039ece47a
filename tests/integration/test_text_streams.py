"""Streams of texts whose worker dies: none has a token twice, and none lacks one."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

from scripts.harness.processes import PATIENCE_S
from tests.conftest import StartServer
from tests.support.texts import chat_body, client, expected_text

STREAMS, TOKENS = 16, 300
WORDS = {
    "engine": "sim",
    "max_batch_size": 16,
    "sim": {"task": "text", "t0_s": 0.01, "t1_s": 0.0, "load_s": 0.0},
}


def test_streams_survive_the_death_of_a_worker(server: StartServer) -> None:
    running = server({"words": WORDS}, workers=2)
    started = threading.Barrier(STREAMS + 1, timeout=PATIENCE_S)
    api = client(running.base_url)

    def read(seed: int) -> str:
        body = chat_body(seed=seed, max_tokens=TOKENS, stream=True)
        parts: list[str] = []
        for chunk in api.chat.completions.create(**body):
            parts.append(chunk.choices[0].delta.content or "")
            if len(parts) == 20:
                started.wait()
        return "".join(parts)

    with ThreadPoolExecutor(STREAMS) as pool:
        texts = [pool.submit(read, seed) for seed in range(STREAMS)]
        started.wait()
        busy = {worker.worker: worker.running + worker.assigned for worker in running.snapshot().workers}
        victim = max(busy, key=lambda name: busy[name])
        os.kill(running.workers[victim].pid, signal.SIGKILL)
        assert [text.result(PATIENCE_S) for text in texts] == [expected_text(seed, TOKENS) for seed in range(STREAMS)]
    assert busy[victim] >= 1
