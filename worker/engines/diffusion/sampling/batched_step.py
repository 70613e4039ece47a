"""Advances the samplers of a batch by one step after their shared forward pass.

Recurrence samplers of any kind move together: tensors are stacked, and each row is multiplied by its own coefficients.
This takes a few kernels for any number of rows. Other samplers step one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from worker.device_errors import device_error_kind
from worker.engines.diffusion.sampling.sampler import RecurrenceSampler, Sampler, StepUpdate
from worker.engines.diffusion.sampling.scheduler_sampler import SchedulerSampler
from worker.engines.torch_device import row_error, to_device

#: Larger latents are not stacked on a CPU: the copies would cost more than the saved kernels.
_MAX_STACKED_SIZE = 4 * 32 * 32

#: A sampler and the model's output for it.
Row = tuple[RecurrenceSampler, torch.Tensor]


def advance(samplers: Sequence[Sampler], outputs: Sequence[torch.Tensor], reproducible: bool = False) -> None:
    """Advance every sampler by one evaluation; each output has the shape of its latents.

    A sampler that fails sets `failure` and stays, while the others move. `reproducible`: no bit of a row depends on
    other rows. Raises torch's out-of-memory and accelerator errors; after out of memory, no sampler has moved.
    """
    rows: list[Row] = []
    others: list[tuple[SchedulerSampler, torch.Tensor]] = []
    for sampler, output in zip(samplers, outputs, strict=True):
        if isinstance(sampler, RecurrenceSampler):
            rows.append((sampler, output))
        else:
            assert isinstance(sampler, SchedulerSampler)
            others.append((sampler, output))
    updates = [(sampler, update) for group in _groups(rows, reproducible) for sampler, update in _updates(group)]
    for sampler, update in updates:
        sampler.apply_step(update)
    for other, output in others:
        try:
            other.advance(output)
        except Exception as error:
            _fail(other, error)


def _groups(rows: Sequence[Row], reproducible: bool) -> list[list[Row]]:
    """Group the rows to stack; a row that is better computed alone gets its own group."""
    groups: defaultdict[object, list[Row]] = defaultdict(list)
    for number, (sampler, output) in enumerate(rows):
        latents = sampler.float_latents
        fits = output.shape == latents.shape and output.device == latents.device
        large = latents.device.type == "cpu" and latents.numel() > _MAX_STACKED_SIZE
        like = (latents.shape, latents.device, sampler.dtype, output.dtype)
        groups[number if reproducible or large or not fits else like].append((sampler, output))
    return list(groups.values())


def _updates(rows: Sequence[Row]) -> list[tuple[RecurrenceSampler, StepUpdate]]:
    """Return the update of each row; rows without one have failed."""
    if len(rows) > 1:
        try:
            return list(zip([sampler for sampler, _ in rows], _stacked_updates(rows), strict=True))
        except Exception as error:
            if device_error_kind(error) in ("out_of_memory", "lost"):
                raise
            # One row is the cause; separately, the failing one shows.
            return [update for row in rows for update in _updates([row])]
    [(sampler, output)] = rows
    try:
        return [(sampler, _single_update(sampler, output))]
    except Exception as error:
        if device_error_kind(error) in ("out_of_memory", "lost"):
            raise
        _fail(sampler, error)
        return []


def _single_update(sampler: RecurrenceSampler, output: torch.Tensor) -> StepUpdate:
    latents = sampler.float_latents
    if output.shape != latents.shape or output.device != latents.device:
        given, expected = (f"{list(tensor.shape)} on {tensor.device}" for tensor in (output, latents))
        raise ValueError(f"the model's output is {given}, the latents are {expected}")
    output, noise = output.float(), sampler.draw_noise()
    noise = None if noise is None else to_device(noise, output.device)
    step = sampler.current_step
    result = latents * step.sample
    result.add_(output, alpha=step.output)
    if noise is not None:
        result.add_(noise, alpha=step.noise)
    for tensor, factor in sampler.earlier_terms():
        result.add_(tensor, alpha=factor)
    return StepUpdate(result, output, noise)


def _stacked_updates(rows: Sequence[Row]) -> list[StepUpdate]:
    samplers = [sampler for sampler, _ in rows]
    device, dtype = samplers[0].float_latents.device, samplers[0].dtype
    noises = _noises(samplers, device)
    terms = [sampler.earlier_terms() for sampler in samplers]
    for sampler, noise, own in zip(samplers, noises, terms, strict=True):
        if noise is not None:
            own.append((noise, sampler.current_step.noise))
    width = max(map(len, terms))
    # Rows with fewer terms add their own latents times zero, so that non-finite values stay in their row.
    terms = [[*own, *[(s.float_latents, 0.0)] * (width - len(own))] for s, own in zip(samplers, terms, strict=True)]
    numbers = [
        [s.next_scale, s.current_step.sample, s.current_step.output, *(factor for _, factor in own)]
        for s, own in zip(samplers, terms, strict=True)
    ]
    table = to_device(torch.tensor(numbers, dtype=torch.float32), device)
    scales, *columns = table.view(len(rows), -1, *[1] * samplers[0].float_latents.ndim).unbind(1)
    outputs = torch.stack([output for _, output in rows]).float()
    result = torch.stack([sampler.float_latents for sampler in samplers]).mul_(columns[0])
    result.addcmul_(outputs, columns[1])
    for place, column in enumerate(columns[2:]):
        result.addcmul_(torch.stack([own[place][0] for own in terms]), column)
    model_latents = result.to(dtype)
    model_inputs = model_latents if all(row[0] == 1 for row in numbers) else (result * scales).to(dtype)
    stacks = (result.unbind(), outputs.unbind(), noises, model_latents.unbind(), model_inputs.unbind())
    return [StepUpdate(*update) for update in zip(*stacks, strict=True)]


def _noises(samplers: Sequence[RecurrenceSampler], device: torch.device) -> list[torch.Tensor | None]:
    """Copy the noise of all rows to the device at once."""
    noises = [sampler.draw_noise() for sampler in samplers]
    real = [noise for noise in noises if noise is not None]
    if not real:
        return [None] * len(noises)
    copies = iter(to_device(torch.stack(real), device).unbind())
    return [None if noise is None else next(copies) for noise in noises]


def _fail(sampler: Sampler, error: Exception) -> None:
    sampler.fail(row_error(error, f"the sampler failed at step {sampler.step}"))
