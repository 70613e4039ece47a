"""Reads the end tokens of a model and its defaults for sampling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from wire.text import SamplingDefaults
from worker.engine import UnsupportedModel
from worker.engines.text.model_files import ModelFiles

#: Defaults of requests, with the lowest and the highest value.
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (1e-6, 1.0),
    "top_k": (0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 100.0),
}


def read_generation_config(files: ModelFiles) -> dict[str, Any]:
    """Return generation_config.json, or else the end tokens of config.json; empty for a model with neither.

    Raises `UnsupportedModel` for a file that holds no object of JSON.
    """
    for name in ("generation_config.json", "config.json"):
        options = {key: value for key, value in files.options.items() if key in ("local_files_only", "revision")}
        file = cached_file(
            files.source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **options,
        )
        if file is None:
            continue
        try:
            config = json.loads(Path(file).read_text("utf-8"))
        except ValueError as error:
            raise UnsupportedModel(f"{name} of {files.source} is no valid JSON: {error}") from error
        if not isinstance(config, dict):
            raise UnsupportedModel(f"{name} of {files.source} must hold an object")
        return config if name.startswith("generation") else {"eos_token_id": config.get("eos_token_id")}
    return {}


def sampling_defaults(config: Mapping[str, Any]) -> SamplingDefaults:
    """Return what the model's authors chose for requests that say nothing. Values out of range are left out."""
    known: dict[str, Any] = {name: config[name] for name in _RANGES if _is_within(config.get(name), *_RANGES[name])}
    if "top_k" in known:
        known["top_k"] = int(known["top_k"])
    return SamplingDefaults(**known)


def _is_within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def token_ids(value: Any) -> list[int]:
    """Return token ids that a configuration gives as a number, as a list or not at all."""
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, int) and not isinstance(each, bool)]
