"""Batching of denoiser calls: grouping, joining and splitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.utils import BaseOutput
from torch.utils._python_dispatch import TorchDispatchMode

from worker.engines.diffusion.generic.call_batching import (
    DenoiserCall,
    TensorContents,
    describe_call,
    group_calls,
    run_calls,
)


@dataclass
class Output(BaseOutput):  # type: ignore[misc]
    sample: Any


class Denoiser(torch.nn.Module):
    """Returns its inputs in a form that identifies each row."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[dict[str, Any]] = []

    def forward(
        self,
        sample: torch.Tensor,
        timestep: Any,
        context: Any = None,
        img_ids: torch.Tensor | None = None,
        extra: Any = None,
        return_dict: bool = True,
    ) -> Any:
        self.received.append({"sample": sample, "timestep": timestep, "context": context, "img_ids": img_ids})
        times = torch.as_tensor(timestep, dtype=torch.float32)
        answer = sample + times.reshape(-1, *[1] * (sample.ndim - 1))
        return Output(sample=answer) if return_dict else (answer, [answer * 2, answer.sum(1)], None)


class Lister(torch.nn.Module):
    """Accepts and returns lists of images of any shape."""

    def forward(self, x: list[torch.Tensor], t: torch.Tensor, cap_feats: list[torch.Tensor]) -> Any:
        return ([own + time + text.sum() for own, time, text in zip(x, t, cap_feats, strict=True)], {})


def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> DenoiserCall:
    return describe_call(module, args, kwargs, TensorContents())


def rows(number: float, count: int = 2) -> torch.Tensor:
    return torch.full((count, 3, 2), float(number)) + torch.arange(count).reshape(-1, 1, 1) / 10


def sizes(calls: Sequence[DenoiserCall]) -> list[int]:
    return sorted(len(group) for group in group_calls(calls))


TIMES = [
    7,
    7.0,
    torch.tensor(7),
    torch.tensor(7.0),
    torch.tensor([7]),
    torch.tensor([7.0, 7.0]),
    torch.tensor([7, 7]),
    torch.tensor(7.0, dtype=torch.float16),
]


@pytest.mark.parametrize("time", TIMES, ids=str)
def test_timesteps_of_any_type_batched(time: Any) -> None:
    module = Denoiser()
    calls = [call(module, rows(1), time), call(module, rows(2, 1), torch.tensor(3.5)), call(module, rows(3), time)]
    assert sizes(calls) == [3]
    one, two, three = (answer.sample for answer in run_calls(calls))
    [received] = module.received
    assert received["timestep"].tolist() == [7, 7, 3.5, 7, 7]
    torch.testing.assert_close(one, rows(1) + 7)
    torch.testing.assert_close(two, rows(2, 1) + 3.5)
    torch.testing.assert_close(three, rows(3) + 7)


class CopiesBetweenDevices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "copy" in func._schema.name and "device" in (kwargs or {})
        return func(*args, **(kwargs or {}))


class MetaDenoiser(torch.nn.Module):
    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return sample * timestep.reshape(-1, 1, 1)


@pytest.mark.parametrize("time", [7, 7.5])
def test_numbers_are_filled_in_on_the_device(time: float) -> None:
    """A copy from memory that is not pinned would wait for the queued steps of a GPU."""
    module = MetaDenoiser()
    calls = [call(module, torch.empty(count, 3, 2, device="meta"), time) for count in (2, 1)]
    with CopiesBetweenDevices() as copies:
        answers = run_calls(calls)
    assert [tuple(each.shape) for each in answers] == [(2, 3, 2), (1, 3, 2)]
    assert copies.count == 0


def test_single_call_made_unchanged() -> None:
    module = Denoiser()
    sample, time = rows(1), torch.tensor(5)
    [answer] = run_calls([call(module, sample, time, img_ids=None)])
    assert module.received[0]["sample"] is sample
    assert module.received[0]["timestep"] is time
    torch.testing.assert_close(answer.sample, sample + 5)


def test_output_structure_preserved() -> None:
    module = Denoiser()
    calls = [call(module, rows(1, 1), 0, return_dict=False), call(module, rows(2, 3), 1, return_dict=False)]
    for dealt, expected in zip(run_calls(calls), (rows(1, 1), rows(2, 3) + 1), strict=True):
        first, [twice, summed], nothing = dealt
        torch.testing.assert_close(first, expected)
        torch.testing.assert_close(twice, expected * 2)
        torch.testing.assert_close(summed, expected.sum(1))
        assert nothing is None


def test_tensor_trees_joined_by_leaf() -> None:
    module = Denoiser()
    trees = [{"a": [rows(n), rows(n + 1)], "b": (rows(n), None)} for n in (1, 5)]
    calls = [call(module, rows(0), 1, context=tree) for tree in trees]
    assert sizes(calls) == [2]
    run_calls(calls)
    joined = module.received[0]["context"]
    torch.testing.assert_close(joined["a"][1], torch.cat([rows(2), rows(6)]))
    torch.testing.assert_close(joined["b"][0], torch.cat([rows(1), rows(5)]))
    assert joined["b"][1] is None


IDS = torch.arange(12.0).reshape(4, 3)
APART: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("what has no batch dimension differs", {"img_ids": IDS}, {"img_ids": IDS + 1}),
    ("... in its shape", {"img_ids": IDS}, {"img_ids": IDS[:3]}),
    ("... in its type", {"img_ids": IDS}, {"img_ids": IDS.double()}),
    ("... or is missing", {"img_ids": IDS}, {}),
    ("texts of other lengths", {"context": torch.ones(2, 5)}, {"context": torch.ones(2, 6)}),
    ("other precision", {"context": torch.ones(2, 5)}, {"context": torch.ones(2, 5).half()}),
    ("a tensor of no known rule differs", {"context": torch.ones(7)}, {"context": torch.zeros(7)}),
    ("options differ", {"return_dict": True}, {"return_dict": False}),
    ("1 is not True", {"extra": 1}, {"extra": True}),
    ("another tree", {"context": [torch.ones(2)]}, {"context": (torch.ones(2),)}),
    ("objects of which nothing is known", {"extra": object()}, {"extra": object()}),
]


@pytest.mark.parametrize(("why", "one", "other"), APART, ids=[why for why, _, _ in APART])
def test_different_shared_arguments_not_batched(why: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    module = Denoiser()
    calls = [call(module, rows(1), 1, **one), call(module, rows(2), 1, **other), call(module, rows(3), 1, **one)]
    assert sizes(calls) == [1, 2]


EQUAL: list[Any] = [
    torch.arange(12.0).reshape(4, 3),
    torch.arange(12).reshape(4, 3).bfloat16(),
    torch.polar(torch.ones(4, 3), torch.arange(12.0).reshape(4, 3)),
    torch.ones(4, dtype=torch.bool),
]


@pytest.mark.parametrize("shared", EQUAL, ids=lambda value: str(value.dtype))
def test_shared_tensor_not_concatenated(shared: torch.Tensor) -> None:
    module = Denoiser()
    calls = [call(module, rows(n, 4), n, img_ids=shared.clone()) for n in range(3)]
    assert sizes(calls) == [3]
    run_calls(calls)
    assert torch.equal(module.received[0]["img_ids"], shared)


def test_repeated_tensor_not_reread() -> None:
    contents = TensorContents()
    tensor = torch.zeros(3)
    first = contents.fingerprint("img_ids", 0, tensor)
    tensor += 1
    assert contents.fingerprint("img_ids", 0, tensor) == first
    assert contents.fingerprint("img_ids", 0, tensor.clone()) != first


def test_image_lists_concatenated_and_split() -> None:
    module = Lister()
    one = [torch.zeros(2, 2), torch.ones(3)], torch.tensor([1.0, 2.0]), [torch.ones(4), torch.ones(1)]
    other = [torch.full((1,), 5.0)], torch.tensor([3.0]), [torch.ones(2)]
    calls = [call(module, *one), call(module, *other)]
    assert sizes(calls) == [2]
    single = [module(*given)[0] for given in (one, other)]
    for (dealt, empty), expected in zip(run_calls(calls), single, strict=True):
        assert empty == {}
        assert len(dealt) == len(expected)
        for mine, its in zip(dealt, expected, strict=True):
            torch.testing.assert_close(mine, its)


def test_calls_of_different_modules_not_batched() -> None:
    first, second = Denoiser(), Denoiser()
    assert sizes([call(first, rows(1), 1), call(second, rows(1), 1), call(first, rows(2), 2)]) == [1, 2]


def test_call_without_batch_dimension_not_batched() -> None:
    module = Denoiser()
    assert sizes([call(module, None, 1), call(module, None, 1)]) == [1, 1]


def test_unknown_arguments_raise_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        call(Denoiser(), rows(1), 1, unknown=2)
