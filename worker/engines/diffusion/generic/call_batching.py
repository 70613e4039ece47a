"""Batches denoiser calls: groups compatible calls, joins their arguments and splits the output.

Arguments with a batch dimension are concatenated; all others must be equal. For an argument, or each leaf of a list,
tuple or dict, the first matching rule applies:

1. `LISTS`: a list with one entry per image. Lists are concatenated.
2. `SHARED`: a tensor without batch dimension. The values must be equal.
3. `NUMBERS`: a number per image, or one per call. Numbers are expanded, then concatenated.
4. `text_padding`: texts of a denoiser that takes a mask for them. With `pad`, texts of other lengths are padded to the
   longest with zeros and masked, as a pipeline does for a list of prompts.
5. A tensor with as many entries as the call has images is concatenated along dimension 0.
6. Other tensors follow rule 2. Other values must be equal; values that cannot be compared never are.

A call without a partner is made unchanged, so that its result equals the pipeline's bit for bit.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree  # handles diffusers' output classes, which register themselves there

from worker.engines.diffusion.generic.text_padding import need_padding, pad_texts, paddable_texts
from worker.engines.torch_device import to_device

LISTS = frozenset({"x", "cap_feats", "img_shapes", "img_sizes", "txt_seq_lens", "control_context"})
SHARED = frozenset(
    {
        "img_ids",
        "txt_ids",
        "image_cond_ids",
        "image_rotary_emb",
        "video_rotary_emb",
        "rotary_embedding",
        "text_rope_pos",
        "visual_rope_pos",
        "scale_factor",
    }
)
NUMBERS = frozenset(
    {"timestep", "timesteps", "t", "timestep_r", "r_timestep", "timestep_ratio", "guidance", "sigma", "noise_level"}
)
_ROWS = "rows"
_NUMBER = "number"
_LIST = "list"


@dataclass(eq=False)
class DenoiserCall:
    """A pending call of a denoiser."""

    module: torch.nn.Module
    bound: inspect.BoundArguments
    #: Number of images: rows of the first tensor or, if `listed`, entries of the first list.
    size: int
    listed: bool
    device: torch.device
    #: Calls with equal keys can share a forward pass.
    key: Hashable
    #: The same if texts may be padded.
    padded_key: Hashable
    #: By argument: the leaves of its tree, their kinds, and the tree's structure.
    parts: dict[str, tuple[list[Any], list[str], pytree.TreeSpec]]
    #: Texts that can be padded, and their masks.
    texts: dict[str, str]

    def isolate(self) -> None:
        self.key = self.padded_key = object()

    def forward(self) -> Any:
        """Run the forward pass of this call alone."""
        return self.module(*self.bound.args, **self.bound.kwargs)


class TensorContents:
    """Caches the contents of tensors that a request passes in every call: reading one synchronizes a GPU."""

    def __init__(self) -> None:
        self._fingerprints: dict[tuple[str, int], tuple[torch.Tensor, int, Hashable]] = {}

    def fingerprint(self, name: str, index: int, tensor: torch.Tensor) -> Hashable:
        """Return shape, dtype and content of leaf number `index` of an argument."""
        cached = self._fingerprints.get((name, index))
        if cached is not None and cached[0] is tensor:
            return cached[2]
        values = tensor.detach().cpu().contiguous().flatten()
        content = (tensor.shape, tensor.dtype, values.view(torch.uint8).numpy().tobytes())
        self._fingerprints[name, index] = (tensor, tensor.numel(), content)
        return content


def describe_call(
    module: torch.nn.Module, args: Sequence[Any], kwargs: dict[str, Any], contents: TensorContents
) -> DenoiserCall:
    """Return the call with its key. Raises `TypeError` for unknown arguments."""
    bound = _signature(type(module).forward).bind(*args, **kwargs)
    size, listed, device = _batch_extent(bound.arguments)
    texts = paddable_texts(bound.arguments, bound.signature.parameters, size)
    key: list[Hashable] = [id(module)]
    padded_key: list[Hashable] = [id(module)]
    parts = {}
    for name, value in bound.arguments.items():
        if name in LISTS and isinstance(value, list) and len(value) == size:
            leaves, spec = pytree.tree_flatten(value, is_leaf=lambda _: True)
            own: list[tuple[str, Hashable]] = [(_LIST, None)]
        else:
            leaves, spec = pytree.tree_flatten(value)
            own = [_classify_leaf(name, index, leaf, size, contents) for index, leaf in enumerate(leaves)]
        parts[name] = (leaves, [kind for kind, _ in own], spec)
        key.append((name, spec, tuple(own)))
        if name in texts:
            padded_key.append((name, value.dtype, value.shape[2:]))
        elif name not in texts.values():
            padded_key.append(key[-1])
    if not size:
        return DenoiserCall(module, bound, size, listed, device, object(), object(), parts, {})
    return DenoiserCall(module, bound, size, listed, device, tuple(key), tuple(padded_key), parts, texts)


def group_calls(calls: Iterable[DenoiserCall], *, pad: bool = False) -> list[list[DenoiserCall]]:
    """Return the groups that can share a forward pass. `pad`: texts of other lengths may be padded."""
    found: dict[Hashable, list[DenoiserCall]] = {}
    for call in calls:
        found.setdefault(call.padded_key if pad else call.key, []).append(call)
    return list(found.values())


def run_calls(calls: Sequence[DenoiserCall]) -> list[Any]:
    """Run calls of one key, or of one padded key, in one forward pass and return the output of each."""
    if len(calls) == 1:
        return [calls[0].forward()]
    return _split_output(_join(calls).forward(), [call.size for call in calls], calls[0].listed)


def _join(calls: Sequence[DenoiserCall]) -> DenoiserCall:
    first = calls[0]
    bound = inspect.BoundArguments(first.bound.signature, first.bound.arguments.copy())
    padded: dict[str, torch.Tensor] = {}
    for text, mask in first.texts.items():
        values = [call.bound.arguments[text] for call in calls]
        masks = [call.bound.arguments.get(mask) for call in calls]
        if need_padding(values, masks):
            padded[text], padded[mask] = pad_texts(values, masks)
    bound.arguments.update(padded)
    for name, (leaves, kinds, spec) in first.parts.items():
        if name in padded:
            continue
        merged = [
            leaf if kind == "same" else _concatenate(kind, [(call, call.parts[name][0][index]) for call in calls])
            for index, (leaf, kind) in enumerate(zip(leaves, kinds, strict=True))
        ]
        bound.arguments[name] = pytree.tree_unflatten(merged, spec)
    size = sum(call.size for call in calls)
    return DenoiserCall(first.module, bound, size, first.listed, first.device, first.key, first.padded_key, {}, {})


def _concatenate(kind: str, leaves: Sequence[tuple[DenoiserCall, Any]]) -> Any:
    if kind == _LIST:
        return list(itertools.chain.from_iterable(leaf for _, leaf in leaves))
    if kind == _NUMBER:
        return torch.cat([_expand(leaf, call) for call, leaf in leaves])
    return torch.cat([leaf for _, leaf in leaves])


def _expand(number: Any, call: DenoiserCall) -> torch.Tensor:
    if not isinstance(number, torch.Tensor):
        return torch.full((call.size,), number, device=call.device)  # filled there: a copy would wait for queued steps
    on_device = to_device(number, call.device) if number.device.type == "cpu" else number.to(call.device)
    return on_device.reshape(-1).expand(call.size)


def _split_output(answer: Any, sizes: Sequence[int], listed: bool) -> list[Any]:
    """Return an output of the same structure for each call, with its own images."""
    total = sum(sizes)

    def is_image_list(part: Any) -> bool:
        return listed and isinstance(part, list) and len(part) == total

    leaves, spec = pytree.tree_flatten(answer, is_leaf=is_image_list)
    split = []
    for leaf in leaves:
        if is_image_list(leaf):
            ends = list(itertools.accumulate(sizes))
            split.append([leaf[end - size : end] for end, size in zip(ends, sizes, strict=True)])
        elif isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) == total and not listed:
            split.append(list(torch.split(leaf, list(sizes))))
        else:
            split.append([leaf] * len(sizes))
    return [pytree.tree_unflatten([own[index] for own in split], spec) for index in range(len(sizes))]


def _batch_extent(arguments: dict[str, Any]) -> tuple[int, bool, torch.device]:
    """Return the number of images (0 if unknown), whether they are in a list, and their device."""
    for name, value in arguments.items():
        if name in LISTS and isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return len(value), True, value[0].device
        if isinstance(value, torch.Tensor) and value.ndim > 1 and name not in SHARED:
            return len(value), False, value.device
    return 0, False, torch.device("cpu")


def _classify_leaf(name: str, index: int, leaf: Any, size: int, contents: TensorContents) -> tuple[str, Hashable]:
    """Return the kind of the leaf and the part that must be equal."""
    if name in NUMBERS and _is_number(leaf, size):
        return _NUMBER, None  # any dtype: some schedulers use integers, others floats
    if isinstance(leaf, torch.Tensor):
        if name not in SHARED and leaf.ndim and len(leaf) == size:
            return _ROWS, (leaf.shape[1:], leaf.dtype)
        return "same", contents.fingerprint(name, index, leaf)
    if leaf is None or isinstance(leaf, bool | int | float | str | torch.dtype | torch.device):
        return "same", (type(leaf), leaf)
    return "same", id(leaf)


def _is_number(leaf: Any, size: int) -> bool:
    if isinstance(leaf, torch.Tensor):
        return leaf.numel() == 1 or leaf.shape == (size,)
    return isinstance(leaf, int | float) and not isinstance(leaf, bool)


@functools.cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])
