"""What the operator reads when a library is not there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from configs.model_settings import Model
from worker.engine import UnsupportedModel
from worker.engines.factory import build


@pytest.mark.parametrize(
    ("engine", "module", "package"),
    [("vllm", "vllm", "vllm"), ("openvino", "openvino_genai", "openvino-genai")],
)
def test_missing_library_is_told_with_the_way_out(engine: str, module: str, package: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed here")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModel) as error:
        build(Model(engine=engine, path=str(tmp_path / "model.gguf")), "cpu:0")
    text = str(error.value)
    assert sys.executable in text
    assert f"install {package}" in text
    assert "models.NAME.python" in text


def test_openvino_is_refused_on_another_device() -> None:
    pytest.importorskip("openvino_genai")
    with pytest.raises(UnsupportedModel, match="NVIDIA"):
        build(Model(engine="openvino", path="model.gguf"), "cuda:0")
