"""Decoding that fits into memory."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from scripts.harness.processes import PATIENCE_S
from worker.engine import OutOfMemory
from worker.engines.diffusion.vae_decoding import StepGate, Tiling, decode_with_retries, needs_tiles

CPU = torch.device("cpu")
NO_MEMORY = torch.OutOfMemoryError("9 GiB")


@pytest.mark.parametrize(
    ("tiling", "side", "device", "expected"),
    [
        ("auto", 1024, "cuda:0", False),
        ("auto", 1536, "cuda:0", True),
        ("auto", 2048, "cpu", False),
        ("on", 512, "cpu", True),
        ("off", 4096, "cuda:0", False),
    ],
)
def test_large_images_are_decoded_in_tiles(tiling: Tiling, side: int, device: str, expected: bool) -> None:
    assert needs_tiles(tiling, side * side, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["a", "b"], "a"),
        ([NO_MEMORY, "b"], "b"),
        ([OutOfMemory("no room"), NO_MEMORY, "c"], "c"),
        ([NO_MEMORY, NO_MEMORY], OutOfMemory),
        ([ValueError("other"), "b"], ValueError),
        ([NO_MEMORY, torch.AcceleratorError("CUDA error: misaligned address"), "c"], torch.AcceleratorError),
    ],
)
def test_attempts_until_one_fits(outcomes: list[Any], expected: Any) -> None:
    def attempt(outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    attempts = [lambda outcome=outcome: attempt(outcome) for outcome in outcomes]
    if isinstance(expected, str):
        assert decode_with_retries(attempts, StepGate(), CPU) == expected
        return
    with pytest.raises(expected):
        decode_with_retries(attempts, StepGate(), CPU)


def test_decode_between_steps_waits_for_one_and_stops_the_next() -> None:
    gate, order = StepGate(), list[str]()
    decoding, proceed = threading.Event(), threading.Event()

    def decode() -> None:
        with gate.between_steps(CPU):
            order.append("decode begins")
            decoding.set()
            proceed.wait(PATIENCE_S)
            order.append("decode ends")

    def step() -> None:
        with gate.step():
            order.append("next step")

    with gate.step():
        other = threading.Thread(target=decode)
        other.start()
        order.append("step")
    assert decoding.wait(PATIENCE_S)
    following = threading.Thread(target=step)
    following.start()
    proceed.set()
    other.join(PATIENCE_S)
    following.join(PATIENCE_S)
    assert order == ["step", "decode begins", "decode ends", "next step"]
