"""Padding of texts that share a forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from worker.engines.diffusion.generic.text_padding import need_padding, pad_texts, paddable_texts

TEXT, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"


def text(tokens: int, images: int = 1) -> torch.Tensor:
    return torch.arange(1.0, 1 + images * tokens * 2).reshape(images, tokens, 2)


def ones(tokens: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
    return torch.ones(1, tokens, dtype=dtype)


#: Arguments of a call for one image, the denoiser's parameters, and the texts that can be padded.
PADDABLE: list[tuple[dict[str, Any], set[str], dict[str, str]]] = [
    ({TEXT: text(3), MASK: None}, {TEXT, MASK}, {TEXT: MASK}),
    ({TEXT: text(3)}, {TEXT, MASK}, {TEXT: MASK}),
    ({TEXT: text(3), MASK: ones(3)}, {TEXT, MASK}, {TEXT: MASK}),
    ({TEXT: text(3), MASK: ones(3, torch.bool)}, {TEXT, MASK}, {TEXT: MASK}),
    ({TEXT: text(3), MASK: ones(3, torch.float)}, {TEXT, MASK}, {}),
    ({TEXT: text(3), MASK: ones(2)}, {TEXT, MASK}, {}),
    ({TEXT: text(3, images=2), MASK: None}, {TEXT, MASK}, {}),
    ({TEXT: None}, {TEXT, MASK}, {}),
    ({TEXT: [text(3)]}, {TEXT, MASK}, {}),
    ({TEXT: text(3)}, {TEXT}, {}),
    ({TEXT: text(3)}, {TEXT, "encoder_attention_mask"}, {}),
    (
        {TEXT: text(3), "encoder_attention_mask": ones(3)},
        {TEXT, "encoder_attention_mask"},
        {TEXT: "encoder_attention_mask"},
    ),
    ({"hidden_states": text(3)}, {TEXT, MASK}, {}),
]


@pytest.mark.parametrize(("arguments", "parameters", "expected"), PADDABLE)
def test_texts_that_can_be_padded(arguments: dict[str, Any], parameters: set[str], expected: dict[str, str]) -> None:
    assert paddable_texts(arguments, parameters, 1) == expected


@pytest.mark.parametrize(
    ("lengths", "masked", "expected"),
    [((3, 3), (False, False), False), ((3, 2), (False, False), True), ((3, 3), (True, False), True)],
)
def test_equal_texts_need_no_mask(lengths: tuple[int, ...], masked: tuple[bool, ...], expected: bool) -> None:
    masks = [ones(length) if own else None for length, own in zip(lengths, masked, strict=True)]
    assert need_padding([text(length) for length in lengths], masks) == expected


def test_padding_is_zero_and_masked() -> None:
    joined, mask = pad_texts([text(1), text(3), text(2)], [None, ones(3, torch.int32), torch.tensor([[1, 0]])])
    assert joined.shape == (3, 3, 2)
    assert torch.equal(joined[0], torch.tensor([[1.0, 2], [0, 0], [0, 0]]))
    assert torch.equal(joined[1:2], text(3))
    assert mask.dtype == torch.int32
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1], [1, 0, 0]]
