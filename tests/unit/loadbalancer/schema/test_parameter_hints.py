"""Parameters by the names that other programs use are told the right name, or the right place."""

from __future__ import annotations

import pytest

from loadbalancer.schema.parameter_hints import parameter_hint
from loadbalancer.schema.requests import ImageRequest

IMAGE = tuple(ImageRequest.model_fields)


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("steps", IMAGE, " Did you mean 'num_inference_steps'?"),
        ("CFG_Scale", IMAGE, " Did you mean 'guidance_scale'?"),
        ("sampler_name", IMAGE, " Did you mean 'scheduler'?"),
        ("width", IMAGE, " Did you mean 'size'?"),
        ("num_images_per_prompt", IMAGE, " Did you mean 'n'?"),
        ("promt", IMAGE, " Did you mean 'prompt'?"),
        ("xyz", IMAGE, ""),
        ("num_predict", ("max_tokens", "prediction"), " Did you mean 'max_tokens'?"),
        ("max_new_tokens", ("max_output_tokens",), " Did you mean 'max_output_tokens'?"),
        ("steps", ("prompt",), ""),
        ("prompt", ("messages", "stop"), " Did you mean 'messages'?"),
        ("messages", ("input", "stop"), " Did you mean 'input'?"),
        ("left", ("instances", "stream"), " Each input is an entry of 'instances'."),
        ("inputs", ("instances", "stream"), " Did you mean 'instances'?"),
        ("prompt", ("path", "body"), " The parameters of the request are in 'body'."),
        ("pth", ("path", "body"), " Did you mean 'path'?"),
    ],
)
def test_hint(name: str, known: tuple[str, ...], hint: str) -> None:
    assert parameter_hint(name, known) == hint
