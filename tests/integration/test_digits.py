"""The built-in model through the complete server: forty concurrent requests equal single runs."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from PIL import Image

from configs.samplers import MODEL_DEFAULT, sampler_names
from scripts.harness.balancer import Server, running
from scripts.harness.processes import PATIENCE_S, wait_until
from tests.support.images import data_url, file, half, make_image

if TYPE_CHECKING:
    from tests.support.digits_pipeline import DigitsPipeline

MODEL = Path(__file__).parents[2] / "worker" / "builtin" / "digits"
DIGITS = {
    "path": "builtin:digits",
    "defaults": {"size": "64x64", "steps": 20, "guidance_scale": 3.0, "scheduler": "ddim"},
    "limits": {"min_side": 32},
    "warm_up": {"measure_s": 2},
    # A fixed size: `auto` is smaller if the measurements are made on a busy machine.
    "max_batch_size": 8,
}
FITTING = [name for name in sampler_names("noise") if name != MODEL_DEFAULT]
#: Levels of 255. Batched and single runs differ by about 1e-5 before rounding, so by at most one level.
TOLERANCE = 1
#: Enough for a worker to be stopped in the middle.
STEPS_OF_MOVED = 100


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    life = {"drain_grace_s": 0, "heartbeat_s": 0.2}
    with running(tmp_path_factory.mktemp("digits"), {"digits": DIGITS}, workers=2, life=life) as server:
        yield server


def signal_workers(server: Server, signum: signal.Signals) -> None:
    for worker in server.workers.values():
        worker.send_signal(signum)


def counted(server: Server) -> Counter[str]:
    """Return what all workers have counted, once their last heartbeats agree that nothing runs."""
    wait_until(lambda: not any(worker.running for worker in server.snapshot().workers), "idle workers")
    names = ("finished", "rows", "steps", "joined_midway")
    total = Counter(dict.fromkeys(names, 0))
    for worker in server.snapshot().workers:
        total.update({name: getattr(worker.counters, name) for name in names})
    return total


def until_all_wait(server: Server, count: int) -> None:
    """Wait until the balancer has so many tasks, of which stopped workers have some."""

    def all_wait() -> bool:
        [model] = server.snapshot().models
        return model.queued + model.running == count

    wait_until(all_wait, f"{count} tasks")


@pytest.fixture(scope="module")
def pipeline() -> DigitsPipeline:
    # Each process of the tests collects this file, and one needs these libraries: 5 s of processor time.
    from tests.support.digits_pipeline import DigitsPipeline

    return DigitsPipeline(MODEL)


def pixels(encoded: str) -> NDArray[np.int16]:
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(np.int16)


def chaotic(sampler: str) -> bool:
    """Return true if the sampler amplifies rounding at many steps and strong guidance.

    The pipeline alone does so too: noise changed by 1e-7 changes its image more than batching does.
    """
    return sampler in ("lcm", "tcd")


def mixed_requests(count: int) -> list[dict[str, Any]]:
    """Return requests that differ in every setting within a batch, and in size between batches."""
    words = itertools.cycle(["seven", "3", "a red two", "zero in blue ink on white paper"])
    samplers = itertools.cycle(FITTING)
    guidance = itertools.cycle([1.0, 3.0, 7.5])
    sizes = itertools.cycle(["64x64", "64x64", "96x64", "64x64", "64x64"])
    requests = []
    for number in range(count):
        sampler, scale, steps = next(samplers), next(guidance), 5 + (number * 7) % 18
        requests.append(
            {
                "prompt": f"a handwritten {next(words)}",
                "negative_prompt": "black paper" if number % 4 == 3 else "",
                "num_inference_steps": min(steps, 8) if chaotic(sampler) else steps,
                "guidance_scale": min(scale, 1.0) if chaotic(sampler) else scale,
                "seed": 1000 + number,
                "scheduler": sampler,
                "size": next(sizes),
            }
        )
    return requests


async def test_forty_mixed_requests_equal_pipeline(digits: Server, pipeline: DigitsPipeline) -> None:
    prompts, before = mixed_requests(40), counted(digits)
    assert {asked["num_inference_steps"] for asked in prompts} >= {5, 12, 22}
    assert {asked["guidance_scale"] for asked in prompts} == {1.0, 3.0, 7.5}
    assert {asked["scheduler"] for asked in prompts} == set(FITTING)

    async with openai.AsyncOpenAI(base_url=f"{digits.base_url}/v1", api_key="none", timeout=PATIENCE_S) as client:

        async def generate(asked: dict[str, Any]) -> NDArray[np.int16]:
            own = {key: asked[key] for key in asked.keys() - {"prompt", "size"}}
            answer = await client.images.generate(
                model="digits", prompt=asked["prompt"], size=asked["size"], extra_body=own
            )
            assert answer.data is not None
            return pixels(answer.data[0].b64_json or "")

        # However fast the workers are, all wait for them; then some join batches of others, as their steps differ.
        signal_workers(digits, signal.SIGSTOP)
        drawing = [asyncio.create_task(generate(asked)) for asked in prompts]
        await asyncio.to_thread(until_all_wait, digits, len(prompts))
        signal_workers(digits, signal.SIGCONT)
        generated = await asyncio.gather(*drawing)

    for asked, image in zip(prompts, generated, strict=True):
        difference = int(np.abs(image - pipeline.image(asked)).max())
        assert difference <= TOLERANCE, f"{asked} differs by {difference} levels"

    # The workers' counters confirm shared steps and batches joined midway.
    done = before["finished"] + len(prompts)
    wait_until(lambda: counted(digits)["finished"] >= done, "the workers' counters")
    after = counted(digits)
    counts = {name: after[name] - before[name] for name in after}
    assert counts["finished"] == len(prompts)
    assert counts["rows"] > 1.5 * counts["steps"], "tasks advanced together"
    assert max(worker.counters.max_batch for worker in digits.snapshot().workers) >= 4
    assert counts["joined_midway"] >= 5


async def test_drained_worker_hands_over_rows_bit_equal(digits: Server, pipeline: DigitsPipeline) -> None:
    source, mask = make_image(), half("L")
    files: dict[str, dict[str, Any]] = {
        "text": {},
        "image": {"image": source, "strength": 0.9},
        "inpaint": {"image": source, "mask": mask, "strength": 0.95},
    }

    async def generate(client: openai.AsyncOpenAI, mode: str, seed: int) -> NDArray[np.int16]:
        sent: dict[str, Any] = {"num_inference_steps": STEPS_OF_MOVED, "seed": seed}
        for name, value in files[mode].items():
            sent[name] = value if name == "strength" else data_url(file(value))
        answer = await client.images.generate(model="digits", prompt="a red seven", extra_body=sent)
        assert answer.data is not None
        return pixels(answer.data[0].b64_json or "")

    # Two of each kind: each worker gets some of them.
    prompts = [(mode, seed) for mode in files for seed in range(2)]
    leaving, staying = digits.workers
    async with openai.AsyncOpenAI(base_url=f"{digits.base_url}/v1", api_key="none", timeout=PATIENCE_S) as client:
        signal_workers(digits, signal.SIGSTOP)
        drawing = [asyncio.create_task(generate(client, mode, seed)) for mode, seed in prompts]
        await asyncio.to_thread(until_all_wait, digits, len(prompts))

        def under_way() -> bool:
            """Let the workers go on for a moment, in which even fast ones do not finish, and look what they do."""
            signal_workers(digits, signal.SIGCONT)
            time.sleep(0.001)
            signal_workers(digits, signal.SIGSTOP)
            return all(worker.running >= 2 for worker in digits.snapshot().workers)

        await asyncio.to_thread(wait_until, under_way, "both workers to draw")
        digits.workers[leaving].send_signal(signal.SIGTERM)
        signal_workers(digits, signal.SIGCONT)
        assert await asyncio.to_thread(digits.workers[leaving].wait, PATIENCE_S) == 0
        generated = await asyncio.gather(*drawing)
    wait_until(lambda: [worker.worker for worker in digits.snapshot().workers] == [staying], "one worker")
    for (mode, seed), got in zip(prompts, generated, strict=True):
        expected = pipeline.generated(mode, seed, STEPS_OF_MOVED, **files[mode])
        difference = int(np.abs(got - expected).max())
        assert difference <= TOLERANCE, f"{mode}, seed {seed}: {difference} levels"
    metrics = httpx.get(f"{digits.base_url}/metrics", timeout=PATIENCE_S).text
    assert 'event="requeued"' in metrics
    assert 'event="steps_redone"} 0.0' in metrics, "no step was done twice"
    digits.start_worker("digits")


def test_image_of_seed_independent_of_n(digits: Server) -> None:
    with openai.OpenAI(base_url=f"{digits.base_url}/v1", api_key="none", timeout=PATIENCE_S) as client:
        four = client.images.generate(model="digits", prompt="a seven", n=4, extra_body={"seed": 10}).data or []
        one = client.images.generate(model="digits", prompt="a seven", extra_body={"seed": 12}).data or []
    assert len(four) == 4
    assert len({image.b64_json for image in four}) == 4
    assert int(np.abs(pixels(four[2].b64_json or "") - pixels(one[0].b64_json or "")).max()) <= TOLERANCE


def test_streamed_previews_approach_final_image(digits: Server) -> None:
    with openai.OpenAI(base_url=f"{digits.base_url}/v1", api_key="none", timeout=PATIENCE_S) as client:
        stream = client.images.generate(
            model="digits", prompt="a handwritten seven", stream=True, partial_images=3, extra_body={"seed": 1}
        )
        events = [event for event in stream if event.type != "image_generation.progress"]  # type: ignore[comparison-overlap]
    assert [event.type for event in events] == [*["image_generation.partial_image"] * 3, "image_generation.completed"]
    images = [pixels(event.b64_json) for event in events]
    distances = [float(np.abs(image - images[-1]).mean()) for image in images]
    assert distances[0] > distances[2] > 0, "later previews must be closer to the final image"
