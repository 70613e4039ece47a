"""Which checkpoints are loaded, from where, and what is refused: pickles, code, and families that are not supported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import Model
from tests.tiny_diffusion import pipeline
from worker.engines.diffusion.loading import BUILTIN, UnsupportedModel, dtype_of, load_family, locate

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def test_a_path_is_built_in_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    assert locate("builtin:digits") == (str(BUILTIN / "digits"), True)
    assert locate(str(tmp_path)) == (str(tmp_path), True)
    assert locate("someone/some-model") == ("someone/some-model", False)


@pytest.mark.parametrize("path", ["builtin:nothing", "/no/such/folder", "./nor-this", "~/nor-that-folder"])
def test_what_is_not_there_is_told_without_asking_the_hub(path: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"built in: digits|no such folder"):
        locate(path)


@pytest.mark.parametrize(
    ("wanted", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda:0", torch.float16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float32", "cuda:1", torch.float32),
        ("float16", "cuda:0", torch.float16),
    ],
)
def test_precision(wanted: str, device: str, dtype: torch.dtype) -> None:
    assert dtype_of(Model.model_validate({"dtype": wanted}), torch.device(device)) == dtype


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_folder_is_loaded_in_the_configured_precision(folder: Path, dtype: str) -> None:
    model = Model.model_validate({"path": str(folder), "dtype": dtype})
    family = load_family(model, CPU)
    assert family.dtype == dtype_of(model, CPU)
    assert family.encode(["a seven", ""]).shape == (2, 16, 32)


def test_another_pipeline_class_is_named_with_those_that_work(folder: Path) -> None:
    rewrite(folder / "model_index.json", lambda index: index.update(_class_name="StableDiffusionXLPipeline"))
    with pytest.raises(UnsupportedModel, match="is a StableDiffusionXLPipeline; supported: StableDiffusionPipeline"):
        load_family(Model(path=str(folder)), CPU)


def test_a_unet_that_takes_guidance_as_an_input_is_refused(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    distilled = UNet2DConditionModel.from_config(unet.config, time_cond_proj_dim=8)
    distilled.save_pretrained(folder / "unet")
    with pytest.raises(UnsupportedModel, match="takes guidance as an input"):
        load_family(Model(path=str(folder)), CPU)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pickle_is_never_read(folder: Path, part: str, tmp_path: Path) -> None:
    weights = next((folder / part).glob("*.safetensors"))
    weights.unlink()
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    opened = tmp_path / "opened"
    torch.save(Trap(opened), folder / part / name)
    with pytest.raises(OSError, match=r"safetensors|no file named"):
        load_family(Model(path=str(folder)), CPU)
    assert not opened.exists()


class Trap:
    """Reading its pickle creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


def test_the_trap_of_the_test_before_works(tmp_path: Path) -> None:
    torch.save(Trap(tmp_path / "opened"), tmp_path / "trap.bin")
    torch.load(tmp_path / "trap.bin", weights_only=False)
    assert (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("pipeline.py", {"_class_name": ["pipeline", "StableDiffusionPipeline"]}),
        ("unet/mine.py", {"unet": ["mine", "UNet2DConditionModel"]}),
    ],
)
def test_code_in_a_checkpoint_is_never_run(folder: Path, tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    ran = tmp_path / "ran"
    (folder / file).write_text(f"open({str(ran)!r}, 'w')\nfrom diffusers import *\n")
    rewrite(folder / "model_index.json", lambda index: index.update(change))
    with pytest.raises((UnsupportedModel, ValueError, AttributeError)):
        load_family(Model(path=str(folder)), CPU)
    assert not ran.exists()
