"""The compared servers: the worker's step loop, and two ways to call a diffusers pipeline.

All run in threads of this process and share weights, kernels and machine. Only one runs at a time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image

from configs.model_settings import Model
from configs.sections import Workers
from scripts.bench.serving.fake_balancer import FakeBalancer
from scripts.bench.serving.workloads import BenchRequest, QueuedRequest, next_batch
from wire.inputs import ImageInputs
from wire.messages import PROTOCOL, Hello
from worker.batch_size import BatchSizer
from worker.engine import StepEngine
from worker.engines.diffusion.image_encoding import encode_image
from worker.postprocessing import PostProcessor
from worker.step_loop import StepLoop

Done = Callable[[BenchRequest], None]


@dataclass(frozen=True)
class ServerUsage:
    """Counters of a server's run."""

    #: Seconds inside `engine.step` or the pipeline's call.
    busy_s: float = 0.0
    #: Steps or calls, and requests summed over them.
    batches: int = 0
    rows: int = 0


class Server(Protocol):
    """A server that reports each finished request. `start` and `stop` enclose a measurement."""

    name: str

    def start(self, done: Done) -> None: ...

    def submit(self, request: BenchRequest) -> None: ...

    def stop(self) -> ServerUsage:
        """Drop open requests. Raises the server's error, if any."""


class StepBatching:
    """The worker's step loop, batch sizes, post-processor and engine, without the socket."""

    name = "step batching"

    def __init__(self, engine: StepEngine, model: Model, sizer: BatchSizer, threads: int) -> None:
        """`threads`: post-processing threads, as many as a worker on this device has."""
        self._engine, self._model, self._sizer, self._threads = engine, model, sizer, threads
        self._balancer: FakeBalancer
        self._post: PostProcessor
        self._loop: StepLoop
        self._thread: threading.Thread
        self._broken: Exception | None = None

    def start(self, done: Done) -> None:
        self._balancer = FakeBalancer(done)
        self._post = PostProcessor(self._balancer.send, self._threads, int(Workers().max_result_bytes))
        hello = Hello(PROTOCOL, "benchmark", "benchmark", "", os.getpid())
        self._loop = StepLoop(
            self._engine, self._model, hello, self._sizer, self._balancer, self._post, drain_timeout_s=60.0
        )
        self._loop.send_hello()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def submit(self, request: BenchRequest) -> None:
        self._balancer.submit(request)

    def stop(self) -> ServerUsage:
        self._balancer.drain()
        self._thread.join()
        self._post.shutdown()
        if self._broken is not None:
            raise self._broken
        counters = self._loop.heartbeat().counters
        return ServerUsage(counters.step_s, counters.steps, counters.rows)

    def _run(self) -> None:
        try:
            self._loop.run()
        except Exception as error:
            self._broken = error


class PipelineCalls:
    """Calls the pipeline with a list of prompts and responds when the full batch is done.

    `cap` 1 serves one request at a time. Images are encoded in a thread pool, as in the worker.
    """

    def __init__(self, name: str, pipe: Any, cap: int, window_s: float, threads: int) -> None:
        self.name = name
        self._pipe, self._cap, self._threads = pipe, cap, threads
        self._window_s = window_s if cap > 1 else 0.0
        self._done: Done
        self._pool: ThreadPoolExecutor
        self._thread: threading.Thread
        self._changed = threading.Condition()
        self._waiting: list[tuple[BenchRequest, float]] = []
        self._stopping = False
        self._broken: Exception | None = None
        self._used = ServerUsage()

    def start(self, done: Done) -> None:
        self._done, self._stopping, self._used = done, False, ServerUsage()
        self._waiting.clear()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="encode")
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def submit(self, request: BenchRequest) -> None:
        with self._changed:
            self._waiting.append((request, time.perf_counter()))
            self._changed.notify()

    def stop(self) -> ServerUsage:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self._pool.shutdown()
        if self._broken is not None:
            raise self._broken
        return self._used

    def _run(self) -> None:
        try:
            while batch := self._next():
                started = time.perf_counter()
                images = draw(self._pipe, [request.inputs for request in batch])
                busy = self._used.busy_s + time.perf_counter() - started
                self._used = ServerUsage(busy, self._used.batches + 1, self._used.rows + len(batch))
                for request, image in zip(batch, images, strict=True):
                    self._pool.submit(self._finish, request, image)
        except Exception as error:
            self._broken = error

    def _next(self) -> list[BenchRequest]:
        """Return the requests of the next call; empty when stopping."""
        with self._changed:
            while not self._stopping:
                queued = [QueuedRequest(request.inputs.steps, since) for request, since in self._waiting]
                chosen = next_batch(queued, time.perf_counter(), self._cap, self._window_s)
                if isinstance(chosen, list):
                    batch = [self._waiting[place][0] for place in chosen]
                    self._waiting = [one for place, one in enumerate(self._waiting) if place not in set(chosen)]
                    return batch
                self._changed.wait(chosen if queued else None)
            return []

    def _finish(self, request: BenchRequest, image: Image.Image) -> None:
        encode_image(image, request.inputs.output_format, request.inputs.output_quality)
        request.finished = time.perf_counter()
        self._done(request)


def draw(pipe: Any, inputs: Sequence[ImageInputs]) -> list[Image.Image]:
    """Run the pipeline for requests that differ only in prompt and seed."""
    first = inputs[0]
    images: list[Image.Image] = pipe(
        prompt=[one.prompt for one in inputs],
        width=first.width,
        height=first.height,
        num_inference_steps=first.steps,
        guidance_scale=first.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(one.seed) for one in inputs],
    ).images
    return images
