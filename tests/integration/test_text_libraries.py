"""Servers with vLLM and OpenVINO on a real model: a worker is killed, and no text changes.

python -m scripts.text_models FOLDER
MUSTER_TEST_TEXT_MODELS=FOLDER MUSTER_TEST_VLLM_PYTHON=ENV/bin/python pytest tests/integration/test_text_libraries.py
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.harness.instance import Instance

#: By engine: the variable with its interpreter, and the model's name in the folder of `scripts.text_models`.
_ENGINES = {
    "vllm": ("MUSTER_TEST_VLLM_PYTHON", "smollm2"),
    "openvino": ("MUSTER_TEST_OPENVINO_PYTHON", "smollm2.gguf"),
}
_QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
)
_TOKENS = 120
#: vLLM takes most of a minute to start on a busy machine.
_START_S = 300.0


@pytest.fixture(params=list(_ENGINES), scope="module")
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    variable, name = _ENGINES[request.param]
    python, models = os.environ.get(variable), os.environ.get("MUSTER_TEST_TEXT_MODELS")
    if not python or not models:
        pytest.skip(f"{variable} names no interpreter, or MUSTER_TEST_TEXT_MODELS no folder of scripts.text_models")
    model = {
        "engine": request.param,
        "path": str(Path(models, name)),
        "python": python,
        "max_batch_size": 8,
        "dtype": "float32",
        "text": {"context_length": 512},
        "warm_up": {"measure_s": 0},
        "scaling": {"min_workers": 2, "max_workers": 2},
    }
    settings = {"devices": {"cpu_slots": 2}, "workers": {"heartbeat_s": 0.2, "lost_after_s": 5, "max_starting": 2}}
    made = Instance(tmp_path_factory.mktemp(request.param), {"models": {"smol": model}} | settings)
    try:
        _until(lambda: len(made.workers()) == 2, made)
        yield made
    finally:
        made.end()


def _until(condition: Callable[[], bool], instance: Instance) -> None:
    ends = time.monotonic() + _START_S
    while not condition():
        assert time.monotonic() < ends, instance.output()
        assert instance.process.poll() is None, instance.output()
        time.sleep(0.5)


def _chat(instance: Instance, question: str, on_text: Callable[[], object], **options: Any) -> str:
    body: dict[str, Any] = {
        "model": "smol",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": _TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    text = ""
    url = f"{instance.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body | options, timeout=_START_S) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                on_text()
    return text


@pytest.mark.timeout(900)
def test_killed_worker_changes_no_text(instance: Instance) -> None:

    def ask(question: str, on_text: Callable[[], object]) -> str:
        # In vLLM, the noise of a sampled text follows from its seed: that one moves too.
        is_sampled = question == _QUESTIONS[1] and "engine: vllm" in instance.config.read_text()
        return _chat(instance, question, on_text, **({"temperature": 0.9, "seed": 5} if is_sampled else {}))

    with ThreadPoolExecutor(len(_QUESTIONS)) as pool:
        undisturbed = list(pool.map(lambda question: ask(question, lambda: None), _QUESTIONS))
    assert "Paris" in undisturbed[0]
    assert len(set(undisturbed)) == len(_QUESTIONS)
    pieces, killed = threading.Semaphore(0), threading.Event()

    def kill_one() -> None:
        for _ in range(4 * len(_QUESTIONS)):
            pieces.acquire(timeout=_START_S)
        busiest = max(instance.workers(), key=lambda worker: worker.running)
        os.kill(busiest.pid, signal.SIGKILL)
        killed.set()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with ThreadPoolExecutor(len(_QUESTIONS)) as pool:
        disturbed = list(pool.map(lambda question: ask(question, pieces.release), _QUESTIONS))
    killer.join()
    assert killed.is_set()
    assert disturbed == undisturbed
    recomputed = [worker.text.recomputed_tokens for worker in instance.workers() if worker.text is not None]
    assert sum(recomputed) > 0, "texts have gone on elsewhere"
