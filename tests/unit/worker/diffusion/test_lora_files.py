"""Invalid LoRA files: rejected with the reason, without traces in the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_diffusion import flux, pipeline, sd3, sdxl
from tests.support.tiny_loras import CPU, ENCODER, denoiser_output, parts_of, rewrite, save_lora, save_two, unchanged
from wire.inputs import Lora
from worker.engine import TaskError
from worker.engines.diffusion.lora.loader import LoraLoader


def rejection(adapters: LoraLoader, *loras: Lora) -> str:
    with pytest.raises(TaskError) as refusal:
        adapters.acquire(loras)
    assert refusal.value.kind == "invalid"
    return refusal.value.message


def changed(folder: Path) -> Path:
    return Path(shutil.copy(folder / "wet.v1.safetensors", folder / "bad.safetensors"))


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    return lambda folder: rewrite(changed(folder), weights=change)


def setting(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(changed(folder), settings=lambda settings: settings | {f"unet.{name}": value})


def of(other: Callable[[], Any], parts: dict[str, Sequence[str]] | None = None) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_lora(folder, "bad", other, parts=parts)

    return make


def written(content: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "bad.safetensors").write_bytes(content)

    return make


def cut(folder: Path) -> None:
    path = changed(folder)
    path.write_bytes(path.read_bytes()[:-100])


def without(place: int) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {key: tensors[key] for n, key in enumerate(sorted(tensors)) if n != place % len(tensors)}


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "not there": (lambda folder: None, "the model has no adapter 'bad'"),
    "a folder": (lambda folder: (folder / "bad.safetensors").mkdir(), "the model has no adapter 'bad'"),
    "a link to itself": (
        lambda folder: (folder / "bad.safetensors").symlink_to("bad.safetensors"),
        "the model has no adapter 'bad'",
    ),
    "no safetensors": (written(b"\x80\x04K*."), "header"),
    "empty": (written(b""), "header"),
    "cut off": (cut, "not fully covered"),
    "without weights": (weights(lambda tensors: {}), "it is empty"),
    "of SDXL": (of(sdxl), "has a different size"),
    "of SDXL's encoder": (of(sdxl, {"text_encoder_2": ENCODER}), "not a weight of an adapter"),
    "of SD 3": (of(sd3), "not a weight of an adapter"),
    "of FLUX": (of(flux), "not a weight of an adapter"),
    "not finite": (weights(lambda tensors: {key: value / 0 for key, value in tensors.items()}), "not finite"),
    "one of the encoder's missing": (weights(without(0)), "were loaded"),
    "one of the denoiser's missing": (weights(without(-1)), "were loaded"),
    "a layer too many": (
        weights(lambda tensors: tensors | {f"unet.nowhere.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}),
        "were loaded",
    ),
    "the model's own weights": (
        weights(lambda tensors: tensors | {"unet.conv_in.weight": torch.ones(4)}),
        "unet.conv_in",
    ),
    "another kind": (weights(lambda tensors: {"unet.mid_block.lokr_w1": torch.ones(2, 2)}), "lokr_w1"),
    "magnitudes of other trainers": (
        weights(lambda tensors: tensors | {"unet.dora_scale": torch.ones(4)}),
        "dora_scale",
    ),
    "ranks that do not meet": (
        weights(
            lambda tensors: {
                key: torch.ones(7, value.shape[1]) if "up_blocks" in key and "lora_A" in key else value
                for key, value in tensors.items()
            }
        ),
        "size mismatch",
    ),
    "another encoder size": (
        weights(lambda tensors: {key: value[:-1] if "text" in key else value for key, value in tensors.items()}),
        "has a different size",
    ),
    "made from the model's own weights": (setting("init_lora_weights", "pissa"), "init_lora_weights is 'pissa'"),
    "replacing layers": (setting("modules_to_save", ["conv_in"]), "modules_to_save"),
    "unheard-of settings": (setting("frobnicate", 1), "frobnicate"),
}


class Served:
    """A pipeline with adapters, and its state before any invalid file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = pipeline()
        self.adapters = LoraLoader(self.made, folder, 3, CPU)
        self.before, self.plain = parts_of(self.made), denoiser_output(self.made)
        self.ink = self.adapters.acquire([Lora("ink")])
        self.adapters.activate(self.ink)
        self.inked = denoiser_output(self.made)

    def check(self) -> None:
        assert repr(self.adapters).endswith("<RefCountedLru 1 of 1 in use, capacity 3>>")
        self.adapters.activate(self.ink)
        assert torch.equal(denoiser_output(self.made), self.inked)
        self.adapters.activate(())
        assert torch.equal(denoiser_output(self.made), self.plain)
        assert unchanged(self.before, parts_of(self.made))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(save_two(tmp_path_factory.mktemp("loras")))


@pytest.fixture
def folder(served: Served) -> Iterator[Path]:
    """The folder of the shared pipeline; cleans up after each case."""
    yield served.folder
    bad = served.folder / "bad.safetensors"
    if bad.is_dir():
        bad.rmdir()
    bad.unlink(missing_ok=True)


@pytest.fixture
def loras(served: Served, tmp_path: Path) -> Path:
    """A separate folder with the same two adapters."""
    return shutil.copytree(served.folder, tmp_path / "loras")


@pytest.mark.parametrize("case", REFUSALS)
def test_invalid_file_rejected_without_side_effects(case: str, served: Served, folder: Path) -> None:
    make, why = REFUSALS[case]
    make(folder)
    served.adapters.activate(served.ink)
    message = rejection(served.adapters, Lora("ink"), Lora("bad"))
    assert "'bad'" in message
    assert why in message
    assert str(folder) not in message
    served.check()


@pytest.mark.parametrize(
    ("layers", "change"),
    [
        # diffusers would enlarge the layer permanently and overwrite the norm.
        (
            ("x_embedder",),
            lambda tensors: {key: torch.ones(4, 128) if "lora_A" in key else value for key, value in tensors.items()},
        ),
        (("to_q",), lambda tensors: tensors | {"transformer.transformer_blocks.0.attn.norm_q.weight": torch.zeros(16)}),
    ],
)
def test_adapter_changing_base_model_rejected(
    layers: tuple[str, ...],
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    made = flux()
    before = {key: value.clone() for key, value in made.transformer.state_dict().items()}
    rewrite(save_lora(tmp_path, "control", flux, parts={"transformer": layers}), weights=change)
    assert "cannot be used with this model" in rejection(LoraLoader(made, tmp_path, 1, CPU), Lora("control"))
    after = made.transformer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../outside", "sub/ink", "/etc/passwd", "ink\0", ".ink", "a" * 129, "link"]
)
def test_name_cannot_leave_folder(name: str, served: Served, loras: Path) -> None:
    (loras / "sub").mkdir()
    for place in (loras.parent / "outside", loras / "sub" / "ink", loras / ".ink"):
        shutil.copy(loras / "ink.safetensors", f"{place}.safetensors")
    (loras / "link.safetensors").symlink_to(loras.parent / "outside.safetensors")
    assert "no adapter" in rejection(LoraLoader(served.made, loras, 1, CPU), Lora(name))


def test_symlink_followed_only_to_safetensors_in_folder(loras: Path) -> None:
    (loras / "again.safetensors").symlink_to("ink.safetensors")
    (loras / "ink.bin").write_bytes((loras / "ink.safetensors").read_bytes())
    (loras / "pickled.safetensors").symlink_to("ink.bin")
    adapters = LoraLoader(pipeline(), loras, 1, CPU)
    assert len(adapters.acquire([Lora("again")])) == 1
    assert "no adapter" in rejection(adapters, Lora("pickled"))


def test_duplicate_adapter_rejected(loras: Path) -> None:
    adapters = LoraLoader(pipeline(), loras, 1, CPU)
    assert "twice" in rejection(adapters, Lora("ink"), Lora("ink", 0.5))
    assert "0 of 1 in use" in repr(adapters)
