"""Checkpoint loading: locations, dtypes, and rejection of pickles, code and unsupported classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.model_parts import BUILTIN_DIR
from configs.model_settings import Model
from tests.support.single_file_checkpoint import save_single_file
from tests.support.tiny_diffusion import CHECKPOINTS, admit, engine_of, finish, pipeline, request, sd3
from worker.engine import UnsupportedModel
from worker.engines.diffusion.checkpoint_source import Source, locate, locate_model
from worker.engines.diffusion.loading import dtype_of, has_family, load_family, open_pipeline, pipeline_class

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


# ---- locations and classes


def test_path_is_builtin_folder_or_hub_id(tmp_path: Path) -> None:
    assert locate("builtin:digits") == Source(str(BUILTIN_DIR / "digits"), local=True)
    assert locate(str(tmp_path)) == Source(str(tmp_path), local=True)
    assert locate("someone/some-model-1.0") == Source("someone/some-model-1.0", local=False)


@pytest.mark.parametrize(
    "path",
    [
        "builtin:nothing",
        "/no/such/folder",
        "./nor-this",
        "~/nor-that-folder",
        "no/such/file.safetensors",
        "no/such/model.gguf",
    ],
)
def test_missing_path_reported_without_hub_request(path: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"built in: digits|no such folder or file"):
        locate(path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_family_recognized_by_pipeline_class(tmp_path: Path, name: str) -> None:
    CHECKPOINTS[name]().save_pretrained(tmp_path)
    text = pipeline_class(Model(path=str(tmp_path)))
    assert has_family(text)
    stem = text.removesuffix("Pipeline")
    assert has_family(f"{stem}Img2ImgPipeline")
    assert has_family(f"{stem}InpaintPipeline")
    assert not has_family(f"{stem}ControlNetPipeline")


def test_pipeline_class_from_configuration(folder: Path) -> None:
    assert (
        pipeline_class(Model(path=str(folder), pipeline="StableDiffusionPAGPipeline")) == "StableDiffusionPAGPipeline"
    )
    assert pipeline_class(Model(path=str(folder), controlnet="./net")) == "StableDiffusionControlNetPipeline"


def test_checkpoint_saved_for_other_mode_is_same_family(folder: Path) -> None:
    rewrite(folder / "model_index.json", lambda index: index.update(_class_name="StableDiffusionInpaintPipeline"))
    family = load_family(Model(path=str(folder)), CPU)
    assert type(family.pipeline) is diffusers.StableDiffusionPipeline
    assert family.modes == ("text", "image", "inpaint")


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "ThisIsNoPipeline", "DiffusionModelPipeline"])
def test_non_pipeline_class_rejected(folder: Path, name: str) -> None:
    rewrite(folder / "model_index.json", lambda index: index.update(_class_name=name))
    with pytest.raises(UnsupportedModel, match=f"has no pipeline {name}"):
        open_pipeline(Model(path=str(folder)), CPU, name)


def test_unsupported_class_lists_supported_ones(folder: Path) -> None:
    rewrite(folder / "model_index.json", lambda index: index.update(_class_name="DiTPipeline"))
    with pytest.raises(UnsupportedModel, match="is a DiTPipeline; supported: StableDiffusionPipeline"):
        load_family(Model(path=str(folder)), CPU)


def test_mismatched_parts_rejected(folder: Path) -> None:
    rewrite(folder / "model_index.json", lambda index: index.update(_class_name="FluxPipeline"))
    with pytest.raises(UnsupportedModel, match="cannot be loaded as a FluxPipeline"):
        load_family(Model(path=str(folder)), CPU)


# ---- loading


@pytest.mark.parametrize(
    ("requested", "device", "name", "dtype"),
    [
        ("auto", "cpu", "StableDiffusionPipeline", torch.float32),
        ("auto", "cuda:0", "StableDiffusionPipeline", torch.float16),
        ("auto", "cuda:0", "StableDiffusionXLPipeline", torch.float16),
        ("auto", "cuda:0", "StableDiffusion3Pipeline", torch.bfloat16),
        ("auto", "cuda:0", "FluxPipeline", torch.bfloat16),
        ("bfloat16", "cpu", "StableDiffusionPipeline", torch.bfloat16),
        ("float32", "cuda:1", "FluxPipeline", torch.float32),
        ("float16", "cuda:0", "StableDiffusionPipeline", torch.float16),
    ],
)
def test_dtype_selection(requested: str, device: str, name: str, dtype: torch.dtype) -> None:
    assert (
        dtype_of(Model.model_validate({"path": "builtin:digits", "dtype": requested}), torch.device(device), name)
        == dtype
    )


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_folder_loaded_in_configured_dtype(folder: Path, dtype: str) -> None:
    model = Model.model_validate({"path": str(folder), "dtype": dtype})
    family = load_family(model, CPU)
    assert family.dtype == dtype_of(model, CPU, "StableDiffusionPipeline")
    assert family.encode(["a seven", ""])["embeddings"].shape == (2, 16, 32)


def test_weights_variant(folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match="variant"):
        load_family(Model(path=str(folder), variant="fp16"), CPU)
    pipeline().to(dtype=torch.float16).save_pretrained(folder, variant="fp16")
    assert load_family(Model(path=str(folder), variant="fp16"), CPU).dtype == torch.float32


def test_controlnet_loaded_with_its_model(folder: Path, tmp_path: Path) -> None:
    loaded = open_pipeline(Model(path=str(folder)), CPU, "StableDiffusionPipeline")
    diffusers.ControlNetModel.from_unet(loaded.unet).save_pretrained(tmp_path / "net")
    model = Model(path=str(folder), controlnet=str(tmp_path / "net"))
    controlled = open_pipeline(model, CPU, pipeline_class(model))
    assert isinstance(controlled, diffusers.StableDiffusionControlNetPipeline)
    assert isinstance(controlled.controlnet, diffusers.ControlNetModel)
    with pytest.raises(UnsupportedModel, match="does not support a ControlNet"):
        open_pipeline(model, CPU, "StableDiffusionPipeline")


def test_missing_optional_parts_loaded_as_none(tmp_path: Path) -> None:
    sd3(t5=False).save_pretrained(tmp_path)
    assert load_family(Model(path=str(tmp_path)), CPU).pipeline.text_encoder_3 is None


# ---- single files


def test_single_file_with_configuration_folder(folder: Path, tmp_path: Path) -> None:
    save_single_file(pipeline(), tmp_path / "single.safetensors")
    folder.rename(tmp_path / "single")
    expected = engine_of(tmp_path / "single")
    for weights in (tmp_path / "single").glob("*/*.safetensors"):
        weights.unlink()
    file = tmp_path / "single.safetensors"
    assert locate(str(file)) == Source(str(tmp_path / "single"), local=True, weights=file)
    assert pipeline_class(Model(path=str(file))) == "StableDiffusionPipeline"
    engine = engine_of(file)
    rows = admit(engine, request()) + admit(expected, request())
    finish(engine, rows[0])
    finish(expected, rows[1])
    assert torch.equal(rows[0].latents, rows[1].latents)


#: Beginnings of the names of the weights in a single file.
DENOISER, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


def weights_of(part: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in part.state_dict().items()}


def scaled(made: Any, factor: float) -> Any:
    """Return the pipeline with other weights, so that it shows which file they come from."""
    for part in (made.unet, made.vae, made.text_encoder):
        part.load_state_dict({name: value * factor for name, value in part.state_dict().items()})
    return made


@pytest.mark.parametrize("inside", [(DENOISER,), (DENOISER, TEXT), (DENOISER, VAE), (DENOISER, VAE, TEXT)])
@pytest.mark.parametrize("place", ["base", "beside"])
def test_parts_that_a_single_file_lacks_come_from_base(tmp_path: Path, inside: tuple[str, ...], place: str) -> None:
    scaled(pipeline(), 2.0).save_pretrained(tmp_path / ("base" if place == "base" else "file"))
    save_single_file(pipeline(), tmp_path / "file.safetensors")
    weights = load_file(tmp_path / "file.safetensors")
    save_file(
        {name: value for name, value in weights.items() if name.startswith(inside)}, tmp_path / "file.safetensors"
    )
    base = {"base": str(tmp_path / "base")} if place == "base" else {}
    loaded = load_family(Model(path=str(tmp_path / "file.safetensors"), **base), CPU).pipeline
    for part, prefix in (("unet", DENOISER), ("vae", VAE), ("text_encoder", TEXT)):
        expected = weights_of(getattr(pipeline() if prefix in inside else scaled(pipeline(), 2.0), part))
        for name, value in weights_of(getattr(loaded, part)).items():
            assert torch.equal(value, expected[name]), f"{part}.{name}"


def test_file_that_does_not_fit_its_base_rejected(tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path / "file")
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, tmp_path / "file.safetensors")
    with pytest.raises(UnsupportedModel, match="does not fit the configuration"):
        load_family(Model(path=str(tmp_path / "file.safetensors")), CPU)


# ---- replaced parts


@pytest.mark.parametrize("layout", ["folder", "pipeline", "file"])
@pytest.mark.parametrize("part", ["vae", "text_encoder", "unet"])
def test_part_replaced_by_configured_one(folder: Path, tmp_path: Path, part: str, layout: str) -> None:
    other = scaled(pipeline(), 0.5)
    other.save_pretrained(tmp_path / "other")
    save_single_file(other, tmp_path / "other.safetensors")
    path = {"folder": tmp_path / "other" / part, "pipeline": tmp_path / "other", "file": tmp_path / "other.safetensors"}
    model = Model.model_validate({"path": str(folder), part: str(path[layout])})
    if (part, layout) == ("text_encoder", "file"):
        with pytest.raises(UnsupportedModel, match="a text encoder must be a folder or a hub id"):
            load_family(model, CPU)
        return
    loaded = load_family(model, CPU).pipeline
    for name in ("unet", "vae", "text_encoder"):
        expected = weights_of(getattr(other if name == part else pipeline(), name))
        for key, value in weights_of(getattr(loaded, name)).items():
            assert torch.equal(value, expected[key]), f"{name}.{key}"


def test_part_that_the_pipeline_lacks_names_the_others(folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match="has no such part; it has text_encoder, unet, vae"):
        load_family(Model(path=str(folder), transformer=str(folder)), CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autoencoder_in_configured_dtype(folder: Path, dtype: str) -> None:
    model = Model.model_validate({"path": str(folder), "dtype": "bfloat16", "vae": {"dtype": dtype}})
    assert str(load_family(model, CPU).vae.dtype) == f"torch.{dtype}"


def test_revision_belongs_to_hub_ids(folder: Path, tmp_path: Path) -> None:
    assert locate_model(Model(path="org/model", revision="v1")).options == {"local_files_only": False, "revision": "v1"}
    assert locate_model(Model(path=str(folder), revision="v1")).options == {"local_files_only": True}
    save_single_file(pipeline(), tmp_path / "single.safetensors")
    based = Model(path=str(tmp_path / "single.safetensors"), base="org/model", revision="v1")
    assert locate_model(based) == Source("org/model", False, tmp_path / "single.safetensors", "v1")


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")
def test_single_file_without_configuration_names_it(tmp_path: Path) -> None:
    save_single_file(pipeline(), tmp_path / "single.safetensors")
    with pytest.raises(UnsupportedModel, match=r"needs the configuration of \S+/\S+, which the hub did not return"):
        load_family(Model(path=str(tmp_path / "single.safetensors")), CPU)


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.gguf"])
def test_other_single_files_rejected_unread(tmp_path: Path, name: str) -> None:
    torch.save(Trap(tmp_path / "opened"), tmp_path / name)
    with pytest.raises(UnsupportedModel, match=r"must be \.safetensors"):
        load_family(Model(path=str(tmp_path / name)), CPU)
    assert not (tmp_path / "opened").exists()


# ---- pickles and code


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickle_never_read(folder: Path, part: str, tmp_path: Path) -> None:
    weights = next((folder / part).glob("*.safetensors"))
    weights.unlink()
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    opened = tmp_path / "opened"
    torch.save(Trap(opened), folder / part / name)
    with pytest.raises(OSError, match=r"safetensors|no file named"):
        load_family(Model(path=str(folder)), CPU)
    assert not opened.exists()


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


def test_pickle_trap_works(tmp_path: Path) -> None:
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
def test_checkpoint_code_never_run(folder: Path, tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    ran = tmp_path / "ran"
    (folder / file).write_text(f"open({str(ran)!r}, 'w')\nfrom diffusers import *\n")
    rewrite(folder / "model_index.json", lambda index: index.update(change))
    with pytest.raises(UnsupportedModel):
        load_family(Model(path=str(folder)), CPU)
    assert not ran.exists()
