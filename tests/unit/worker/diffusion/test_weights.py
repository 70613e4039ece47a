"""Weights of a standby worker: in its own memory, whatever becomes of their file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.model_settings import Model
from tests.support.tiny_diffusion import pipeline
from worker.engines.diffusion.loading import read_pipeline
from worker.engines.torch_device import CONTEXT_BYTES, memory_fraction
from worker.engines.weights import hold_weights, modules_of

_SIDE = 1024
_BYTES = _SIDE * _SIDE * 2


def mapped_file(tensor: torch.Tensor) -> str:
    """Return the file whose mapping holds the tensor's bytes; empty if they are this process's own memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, *_, name = line.split(maxsplit=5) if len(line.split(maxsplit=5)) == 6 else [*line.split(), ""]
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if start <= tensor.data_ptr() < end:
            return name if name.startswith("/") else ""
    raise AssertionError("no mapping holds the tensor")


def test_weights_are_in_own_memory_and_not_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(_SIDE, _SIDE, dtype=torch.float16)}, file)
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight = torch.nn.Parameter(load_file(file)["weight"], requires_grad=False)
    assert mapped_file(module.weight) == str(file), "as it is loaded"
    assert hold_weights([module]) == _BYTES
    assert mapped_file(module.weight) == ""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) - _BYTES] + bytes(_BYTES))
    assert bool((module.weight == 1).all()), "another file must not change the weights"


def test_shared_weights_stay_shared() -> None:
    one, other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    other.weight = one.weight
    assert hold_weights([one, other]) == 4 * (16 + 4 + 4)
    assert one.weight.data_ptr() == other.weight.data_ptr()


def test_pipeline_keeps_its_weights(tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path)
    loaded = read_pipeline(Model(path=str(tmp_path)), torch.device("cpu"), "StableDiffusionPipeline")
    assert hold_weights(modules_of(loaded)) > 0
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(pipeline(), part).state_dict()
        for name, value in getattr(loaded, part).state_dict().items():
            assert torch.equal(value, expected[name])


@pytest.mark.parametrize(
    ("declared", "expected"), [(8 << 30, (8 << 30) - CONTEXT_BYTES), (100 << 30, 16 << 30), (1, 0.01 * (16 << 30))]
)
def test_declared_memory_includes_the_context(declared: int, expected: float) -> None:
    assert memory_fraction(declared, 16 << 30) * (16 << 30) == pytest.approx(expected)
