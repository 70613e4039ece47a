"""Moves the samplers of a batch by one step, after the forward pass that they shared.

Those that are recurrences move together, whatever their schedulers: their tensors are stacked and each row is
multiplied with its own numbers, a handful of kernels for any number of rows. Others step one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from wire.messages import FailureKind
from worker.engine import TaskError
from worker.engines.diffusion.device import moved
from worker.engines.diffusion.sampling.sampler import RecurrenceSampler, Sampler
from worker.engines.diffusion.sampling.scheduler_sampler import SchedulerSampler

#: Latents of more numbers than this are not stacked on a CPU: copying them takes longer than the kernels it saves.
_LARGEST_STACKED = 4 * 32 * 32

#: A sampler and the model's output for it.
Row = tuple[RecurrenceSampler, torch.Tensor]


class Move(NamedTuple):
    """What a step leads to: what `RecurrenceSampler.moved_to` takes."""

    result: torch.Tensor
    output: torch.Tensor
    noise: torch.Tensor | None
    shown: torch.Tensor | None = None
    model_input: torch.Tensor | None = None


def advance(samplers: Sequence[Sampler], outputs: Sequence[torch.Tensor], reproducible: bool = False) -> None:
    """Move every sampler on by one evaluation, given the model's output for each, shaped like its latents.

    One that cannot be moved becomes `broken` and stays where it is, while the others move. `reproducible`: no bit of
    a row depends on the other rows. Raises torch's error where the device is full or gone; if it is full, none has
    moved.
    """
    rows: list[Row] = []
    others: list[tuple[SchedulerSampler, torch.Tensor]] = []
    for sampler, output in zip(samplers, outputs, strict=True):
        if isinstance(sampler, RecurrenceSampler):
            rows.append((sampler, output))
        else:
            assert isinstance(sampler, SchedulerSampler)
            others.append((sampler, output))
    moves = [(sampler, move) for group in _groups(rows, reproducible) for sampler, move in _moves(group)]
    for sampler, move in moves:
        sampler.moved_to(*move)
    for other, output in others:
        try:
            other.move(output)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            _break(other, error)


def _groups(rows: Sequence[Row], reproducible: bool) -> list[list[Row]]:
    """Rows that are stacked; each alone where that is better."""
    groups: defaultdict[object, list[Row]] = defaultdict(list)
    for number, (sampler, output) in enumerate(rows):
        latents = sampler.exact
        fits = output.shape == latents.shape and output.device == latents.device
        large = latents.device.type == "cpu" and latents.numel() > _LARGEST_STACKED
        like = (latents.shape, latents.device, sampler.dtype, output.dtype)
        groups[number if reproducible or large or not fits else like].append((sampler, output))
    return list(groups.values())


def _moves(rows: Sequence[Row]) -> list[tuple[RecurrenceSampler, Move]]:
    """The move of each row that can be moved; the others are broken."""
    if len(rows) > 1:
        try:
            return list(zip([sampler for sampler, _ in rows], _together(rows), strict=True))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception:  # one of them is to blame, and alone it shows which
            return [move for row in rows for move in _moves([row])]
    [(sampler, output)] = rows
    try:
        return [(sampler, _alone(sampler, output))]
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        _break(sampler, error)
        return []


def _alone(sampler: RecurrenceSampler, output: torch.Tensor) -> Move:
    latents = sampler.exact
    if output.shape != latents.shape or output.device != latents.device:
        given, wanted = (f"{list(tensor.shape)} on {tensor.device}" for tensor in (output, latents))
        raise ValueError(f"the model's output is {given}, the latents are {wanted}")
    output, noise = output.float(), sampler.draw()
    noise = None if noise is None else moved(noise, output.device)
    now = sampler.now
    result = latents * now.sample
    result.add_(output, alpha=now.output)
    if noise is not None:
        result.add_(noise, alpha=now.noise)
    for tensor, factor in sampler.earlier():
        result.add_(tensor, alpha=factor)
    return Move(result, output, noise)


def _together(rows: Sequence[Row]) -> list[Move]:
    samplers = [sampler for sampler, _ in rows]
    device, dtype = samplers[0].exact.device, samplers[0].dtype
    noises = _noises(samplers, device)
    added = [sampler.earlier() for sampler in samplers]
    for sampler, noise, own in zip(samplers, noises, added, strict=True):
        if noise is not None:
            own.append((noise, sampler.now.noise))
    width = max(map(len, added))
    # A row that adds less than others adds its own latents times nothing: what is not finite there stays there.
    added = [[*own, *[(s.exact, 0.0)] * (width - len(own))] for s, own in zip(samplers, added, strict=True)]
    numbers = [
        [s.next_scale, s.now.sample, s.now.output, *(factor for _, factor in own)]
        for s, own in zip(samplers, added, strict=True)
    ]
    table = moved(torch.tensor(numbers, dtype=torch.float32), device)
    scales, *columns = table.view(len(rows), -1, *[1] * samplers[0].exact.ndim).unbind(1)
    outputs = torch.stack([output for _, output in rows]).float()
    result = torch.stack([sampler.exact for sampler in samplers]).mul_(columns[0])
    result.addcmul_(outputs, columns[1])
    for place, column in enumerate(columns[2:]):
        result.addcmul_(torch.stack([own[place][0] for own in added]), column)
    shown = result.to(dtype)
    seen = shown if all(row[0] == 1 for row in numbers) else (result * scales).to(dtype)
    stacks = (result.unbind(), outputs.unbind(), noises, shown.unbind(), seen.unbind())
    return [Move(*move) for move in zip(*stacks, strict=True)]


def _noises(samplers: Sequence[RecurrenceSampler], device: torch.device) -> list[torch.Tensor | None]:
    """The noise of each row that has any, on the device, by way of one copy."""
    drawn = [sampler.draw() for sampler in samplers]
    real = [noise for noise in drawn if noise is not None]
    if not real:
        return [None] * len(drawn)
    copies = iter(moved(torch.stack(real), device).unbind())
    return [None if noise is None else next(copies) for noise in drawn]


def _break(sampler: Sampler, error: Exception) -> None:
    kind: FailureKind = "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else "error"
    sampler.broken = TaskError(kind, f"the sampler failed at step {sampler.step}: {error}")
