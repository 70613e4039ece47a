"""`transformers serve`, over HTTP: the server of transformers with its continuous batching."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import threading
import time
from typing import Any

from scripts.bench.text.driving import TokenEvent
from scripts.bench.text.workload import TokenRequest

_START_S = 120.0
_PAGE_TOKENS = 64


class ServedTransformers:
    """The server in a thread of this process, so that its processor time counts. So does that of its clients.

    It takes texts only. The text of a chat has exactly the tokens of its prompt; that of random tokens nearly does.
    """

    def __init__(self, path: str, dtype: str, slots: int, context: int, step_tokens: int) -> None:
        self._path, self._dtype = path, dtype
        self._pages, self._step_tokens = slots * context // _PAGE_TOKENS + 8, step_tokens
        self._events: queue.SimpleQueue[TokenEvent | Exception] = queue.SimpleQueue()

    def load(self) -> None:
        import torch
        from transformers import AutoTokenizer
        from transformers.cli.serve import Serve

        torch.set_num_threads(1)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(self._path)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        Serve(
            self._path,
            continuous_batching=True,
            attn_implementation="sdpa",
            device="cpu",
            dtype=self._dtype,
            cb_block_size=_PAGE_TOKENS,
            cb_num_blocks=self._pages,
            cb_max_batch_tokens=self._step_tokens,
            host="127.0.0.1",
            port=self._port,
            log_level="error",
            non_blocking=True,
        )
        end = time.monotonic() + _START_S
        while not self._is_ready():
            if time.monotonic() > end:
                raise TimeoutError(f"transformers serve did not start within {_START_S:g} s")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return True
        except OSError:
            return False

    def submit(self, request: TokenRequest) -> None:
        threading.Thread(target=self._read, args=(request,), daemon=True).start()

    def _read(self, request: TokenRequest) -> None:
        try:
            self._stream(request)
        except Exception as error:
            self._events.put(error)

    def _stream(self, request: TokenRequest) -> None:
        # An end token that no model has: all texts are as long as they are to be.
        options = {"max_new_tokens": request.tokens, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        prompt = self._tokenizer.decode(request.prompt, skip_special_tokens=False)
        body = {"model": self._path, "prompt": prompt, "stream": True, "generation_config": json.dumps(options)}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise RuntimeError(f"{response.status}: {response.read(300)!r}")
        left = request.tokens
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"][0]["text"] and left > 1:  # others come with the last
                left -= 1
                self._events.put(TokenEvent(request.number, 1, time.perf_counter()))
            if "usage" in chunk:
                break
        connection.close()
        self._events.put(TokenEvent(request.number, left, time.perf_counter()))

    def step(self) -> list[TokenEvent]:
        try:
            event = self._events.get(timeout=0.05)
        except queue.Empty:
            return []
        if isinstance(event, Exception):
            raise event
        return [event]

    def describe(self) -> str:
        import torch
        import transformers

        return f"transformers serve {transformers.__version__} torch {torch.__version__} {self._dtype}"
