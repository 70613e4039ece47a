"""What is said of the files of a model that cannot be loaded, and that a good checkpoint has no problem."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from configs.checkpoint_files import checkpoint_problems, is_hub_id
from configs.model_settings import Model
from configs.safetensors_file import InvalidFile, check_safetensors

_DIGITS = Path(__file__).parents[3] / "worker" / "builtin" / "digits"
_UNET = "unet/diffusion_pytorch_model.safetensors"
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 335304388\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "digits"
    shutil.copytree(_DIGITS, copy)
    return copy


def truncate(file: Path) -> None:
    os.truncate(file, 1000)


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_link(file: Path, target: str) -> None:
    file.unlink()
    file.symlink_to(target)


def edit_index(index: Path, **changes: object) -> None:
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))


@pytest.mark.parametrize("path", ["builtin:digits", str(_DIGITS), "stabilityai/sd-turbo", "gpt2"])
def test_good_checkpoint_has_no_problem(path: str) -> None:
    assert checkpoint_problems(Model(path=path)) == []


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: os.truncate(f / _UNET, 4_000_000), [_UNET, "cut short: 4,000,000 of 4,793,760 bytes"]),
        (lambda f: os.truncate(f / _UNET, 1000), ["is cut short: its header alone has"]),
        (lambda f: os.truncate(f / _UNET, 5), ["is not a safetensors file"]),
        (lambda f: os.truncate(f / _UNET, 0), ["is empty; download it again"]),
        (lambda f: os.truncate(f / _UNET, 4_793_761), ["1 bytes too many"]),
        (lambda f: (f / _UNET).write_bytes(bytes(4096)), ["begins with zeros only"]),
        (lambda f: (f / _UNET).write_bytes(os.urandom(7) + b"\xff" * 4096), ["is not a safetensors file"]),
        (lambda f: (f / _UNET).write_bytes((9).to_bytes(8, "little") + b"{nonsense"), ["has a damaged header"]),
        (lambda f: (f / _UNET).write_bytes((11).to_bytes(8, "little") + b'{"a": {}}  '), ["has a damaged header"]),
        (lambda f: (f / _UNET).write_bytes(b"PK\x03\x04" + bytes(99)), ["is a PyTorch file, not safetensors"]),
        (lambda f: (f / _UNET).write_bytes(_LFS), ["is a pointer of Git LFS", "git lfs pull"]),
        (lambda f: (f / _UNET).write_bytes(b"\n<!DOCTYPE html><html>"), ["is a web page"]),
        (lambda f: (f / _UNET).rename(f / "unet/diffusion_pytorch_model.bin"), [".bin is not safetensors", "convert"]),
        (lambda f: (f / _UNET).unlink(), ["digits/unet has no weights"]),
        (lambda f: ((f / _UNET).unlink(), (f / _UNET).symlink_to("/nowhere")), ["is a link to a file that is not"]),
        (lambda f: replace_by_pipe(f / _UNET), [_UNET, "is not a regular file"]),
        (lambda f: ((f / _UNET).unlink(), (f / _UNET).mkdir()), [_UNET, "Is a directory"]),
        (lambda f: replace_by_pipe(f / "model_index.json"), ["is not a regular file"]),
        (lambda f: (f / "model_index.json").write_text("{}"), ["model_index.json names no pipeline (_class_name)"]),
        (lambda f: edit_index(f / "model_index.json", _class_name=5), ["names no pipeline"]),
        (lambda f: shutil.rmtree(f / "vae"), ["digits/vae is missing", "model_index.json names it"]),
        (lambda f: (f / "unet/config.json").write_text("{"), ["unet/config.json is not valid JSON"]),
        (lambda f: (f / "unet/config.json").write_bytes(_LFS), ["config.json is a pointer of Git LFS"]),
        (lambda f: (f / "tokenizer/tokenizer.json").write_text('{"x": '), ["tokenizer.json is not valid JSON"]),
        (lambda f: (f / "scheduler/scheduler_config.json").write_text(""), ["scheduler_config.json is empty"]),
        (lambda f: (f / "model_index.json").unlink(), ["not a checkpoint in diffusers format", "no model_index.json"]),
        (lambda f: (f / "model_index.json").write_text("[]"), ["model_index.json is not a JSON object"]),
        (lambda f: (f / "model_index.json").write_bytes(_LFS), ["model_index.json is a pointer of Git LFS"]),
        (
            lambda f: (f / _UNET).rename(f / "unet/diffusion_pytorch_model.fp16.safetensors"),
            ["weights of variant fp16 only; set variant: fp16"],
        ),
        (
            lambda f: (f / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "second.safetensors"}})
            ),
            ["second.safetensors is missing (1 of 2 files)"],
        ),
    ],
)
def test_problem_names_file_reason_and_way_out(
    folder: Path, change: Callable[[Path], object], parts: list[str]
) -> None:
    change(folder)
    [problem] = checkpoint_problems(Model(path=str(folder)))
    for part in parts:
        assert part in problem


@pytest.mark.parametrize(
    "changes", [{"base": "org/model", "revision": "v1"}, {"base": "builtin:digits"}, {"vae": "org/model"}]
)
def test_parts_of_the_hub_are_not_looked_for(changes: dict[str, str]) -> None:
    assert checkpoint_problems(Model.model_validate({"path": "builtin:digits", **changes})) == []


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (Model(path="/nowhere"), "no such folder or file: /nowhere"),
        (Model(path="a/b/c"), f"no such folder or file: a/b/c (in {Path.cwd()})"),
        (Model(path="model.safetensors"), "no such folder or file"),
        (Model(path="/dev/null"), "/dev/null is neither a folder nor a regular file"),
        (Model(path="builtin:faces"), "no built-in model 'faces'; built in: digits"),
        (Model(path=str(_DIGITS / "unet")), "it is one part of a pipeline"),
        (Model(path=str(_DIGITS.parent)), f"did you mean {_DIGITS}?"),
        (Model(path=str(_DIGITS / "model_index.json")), "single files must be .safetensors"),
        (Model(path="builtin:digits", controlnet="/nowhere"), "controlnet: no such folder: /nowhere"),
        (Model(path="builtin:digits", controlnet=str(_DIGITS)), "has no config.json"),
        (Model(path="builtin:digits", loras=Path("/nowhere")), "loras: no such folder: /nowhere"),
        (Model(path="builtin:digits", base="/nowhere"), "base: no such folder or file: /nowhere"),
        (Model(path="builtin:digits", base=str(_DIGITS / "unet")), "unet has no model_index.json; it is one part"),
        (Model(path="builtin:digits", base=str(_DIGITS / _UNET)), "must be a folder or a hub id"),
        (Model(path="builtin:digits", unet="/nowhere.safetensors"), "unet: no such folder or file: /nowhere"),
        (Model.model_validate({"path": "builtin:digits", "vae": "./no"}), "vae: no such folder or file: no (in "),
        (
            Model(path="builtin:digits", text_encoder=str(_DIGITS / "model_index.json")),
            "text_encoder: ",
        ),
        (Model(path="builtin:digits", revision="v1"), "builtin:digits is not a hub id, and only those have revisions"),
    ],
)
def test_wrong_place_is_named(model: Model, part: str) -> None:
    [problem] = checkpoint_problems(model)
    assert part in problem


def test_adapter_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    names = ["unet.to_q.lora_A.weight", "unet.to_q.lora_B.weight", "unet.to_q.alpha"]
    save_file({name: torch.zeros(2) for name in names}, file)
    [problem] = checkpoint_problems(Model(path=str(file)))
    assert "holds a LoRA adapter" in problem
    (tmp_path / "adapter_config.json").write_text("{}")
    [problem] = checkpoint_problems(Model(path=str(tmp_path)))
    assert "it holds an adapter" in problem


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_missing_permission_is_named(folder: Path) -> None:
    (folder / _UNET).chmod(0)
    [problem] = checkpoint_problems(Model(path=str(folder)))
    assert "cannot be read: Permission denied" in problem


def test_only_names_of_the_hub_are_taken_for_hub_ids(tmp_path: Path) -> None:
    ids = ["stabilityai/sd-turbo", "gpt2", "/abs", "./rel", "../up", "a/b/c", "a.safetensors", "", "a b", "~/x"]
    assert [path for path in ids if is_hub_id(path)] == ["stabilityai/sd-turbo", "gpt2"]
    assert not is_hub_id(str(tmp_path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=80), length=st.integers(0, 2**64 - 1), brace=st.booleans())
def test_any_bytes_are_accepted_or_refused(tmp_path: Path, data: bytes, length: int, brace: bool) -> None:
    file = tmp_path / "any.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + (b"{" if brace else b"") + data)
    try:
        check_safetensors(file)
    except InvalidFile as refusal:
        assert str(file) in str(refusal)  # noqa: PT017 - either outcome is right


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    save_file({"model.embed_tokens.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    return folder


def test_language_model_that_is_complete_has_no_problem(language_model: Path) -> None:
    for path in (str(language_model), "Qwen/Qwen3-0.6B"):
        assert checkpoint_problems(Model(engine="text", path=path)) == []


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json; to load one file"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda f: (f / "tokenizer.json").write_text("["), "tokenizer.json is not valid JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(_LFS), "is a pointer of Git LFS"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), ".bin is not safetensors"),
        (lambda f: (f / "model_index.json").write_text("{}"), "in diffusers format; set engine: diffusion"),
        (lambda f: replace_by_pipe(f / "tokenizer.json"), "tokenizer.json is not a regular file"),
        (lambda f: os.mkfifo(f / "chat_template.jinja"), "chat_template.jinja is not a regular file"),
        (lambda f: replace_by_link(f / "tokenizer.json", "absent"), "tokenizer.json cannot be read: No such file"),
        (lambda f: replace_by_link(f / "tokenizer.json", "tokenizer.json"), "cannot be read: Too many levels"),
        (lambda f: replace_by_link(f / "tokenizer.json", "/dev/zero"), "tokenizer.json is not a regular file"),
        (lambda f: replace_by_link(f / "tokenizer.json", "/"), "tokenizer.json cannot be read: Is a directory"),
    ],
)
def test_problem_of_a_language_model_is_named(
    language_model: Path, change: Callable[[Path], object], part: str
) -> None:
    change(language_model)
    [problem] = checkpoint_problems(Model(engine="text", path=str(language_model)))
    assert part in problem


@pytest.mark.parametrize("engine", ["text", "vllm", "openvino"])
def test_wrong_place_of_a_language_model_is_named(engine: str, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    for path, part in (
        ("/nowhere", "no such folder or file: /nowhere"),
        (str(tmp_path / "model.bin"), "is not supported: a language model is a folder"),
        ("builtin:faces", "no built-in model 'faces'; built in: "),
        ("builtin:digits", "built-in model 'digits' generates images; set engine: diffusion"),
    ):
        [problem] = checkpoint_problems(Model(engine=engine, path=path))
        assert part in problem


@pytest.mark.parametrize(
    ("engine", "files", "part"),
    [
        ("openvino", ("openvino_model.xml", "openvino_model.bin"), ""),
        ("openvino", (), "is in transformers' format: use engine text or vllm"),
        ("vllm", (), ""),
        ("text", (), ""),
    ],
)
def test_folder_of_a_library_has_its_own_files(
    language_model: Path, engine: str, files: Sequence[str], part: str
) -> None:
    for name in files:
        (language_model / name).write_bytes(b"x")
    problems = checkpoint_problems(Model(engine=engine, path=str(language_model)))
    assert [part in problem for problem in problems] == [True] * bool(part)


def test_openvino_folder_that_lacks_a_file(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    [problem] = checkpoint_problems(Model(engine="openvino", path=str(tmp_path)))
    assert "has no openvino_model.bin" in problem


@pytest.mark.parametrize(
    ("engine", "path", "part"),
    [
        ("openvino", "Qwen/Qwen3-0.6B", "loads a .gguf file, or a folder in OpenVINO's format"),
        ("vllm", "model.gguf", ".gguf files are for engine openvino"),
        ("text", "model.gguf", ".gguf files are for engine openvino"),
        ("openvino", "model.gguf", ""),
        ("vllm", "Qwen/Qwen3-0.6B", ""),
    ],
)
def test_library_and_path_that_do_not_fit(
    engine: str, path: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    problems = checkpoint_problems(Model(engine=engine, path=path))
    assert [part in problem for problem in problems] == [True] * bool(part)
