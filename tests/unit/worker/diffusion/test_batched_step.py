"""Batched sampler steps: any mix of samplers gives the same results as each alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.samplers import sampler_names
from tests.support.samplers import (
    SHAPE,
    SOME,
    Make,
    both,
    by_recurrence,
    by_scheduler,
    random_tensor,
    run_to_end,
    shipped,
    started_sampler,
    step,
)
from worker.engine import TaskError
from worker.engines.diffusion.sampling import Sampler, SchedulerSetup
from worker.engines.diffusion.sampling.batched_step import advance
from worker.engines.diffusion.sampling.sampler import RecurrenceSampler
from worker.engines.diffusion.sampling.state_codec import unpack_state

# diffusers' KDPM2 schedulers pass a tensor to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


def unfinished(samplers: Sequence[Sampler]) -> list[Sampler]:
    return [sampler for sampler in samplers if sampler.step < sampler.steps]


@pytest.mark.parametrize("process", ["noise", "flow", "edm"])
@pytest.mark.parametrize("reproducible", [False, True])
def test_mixed_batch_equals_single_samplers(process: Any, reproducible: bool) -> None:
    like = shipped(process)
    single = {
        name: run_to_end(started_sampler(by_scheduler, name, like, 5 + n % 4, n))[-1]
        for n, name in enumerate(sampler_names(process))
    }
    batch = {
        name: started_sampler(by_recurrence, name, like, 5 + n % 4, n) for n, name in enumerate(sampler_names(process))
    }
    waiting = list(batch.values())
    running: list[Sampler] = []
    while waiting or running:
        running += waiting[:3]  # rows join and leave continuously
        del waiting[:3]
        step(*running, reproducible=reproducible)
        running = unfinished(running)
    for name, sampler in batch.items():
        assert sampler.failure is None
        assert float((sampler.latents - single[name]).norm() / single[name].norm()) < 1e-5, name


@given(st.lists(st.tuples(st.sampled_from(SOME), st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_reproducible_bits_independent_of_other_rows(others: list[tuple[str, int, int]]) -> None:
    for name in ("dpmpp_3m", "euler_ancestral", "sasolver"):
        expected = run_to_end(started_sampler(by_recurrence, name, shipped(), 6, seed=1))
        mine = started_sampler(by_recurrence, name, shipped(), 6, seed=1)
        rest: list[Sampler] = [
            started_sampler(by_recurrence, other, shipped(), steps, seed) for other, steps, seed in others
        ]
        for at, latents in enumerate(expected):
            here = at % (len(rest) + 1)
            step(*rest[:here], mine, *rest[here:], reproducible=True)
            rest = unfinished(rest)
            assert torch.equal(mine.latents, latents)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("reproducible", [False, True])
def test_half_precision_model_inputs_and_latents(dtype: torch.dtype, near: float, reproducible: bool) -> None:
    def started(make: Make, name: str, seed: int, noise: torch.Tensor) -> Sampler:
        sampler = make(name, shipped(), SchedulerSetup(6), torch.Generator().manual_seed(seed))
        sampler.start(noise)
        return sampler

    batch = [started(by_recurrence, name, n, random_tensor(n, dtype=dtype)) for n, name in enumerate(SOME)]
    exact = [started(by_scheduler, name, n, random_tensor(n, dtype=dtype).float()) for n, name in enumerate(SOME)]
    rows: list[Sampler] = list(batch)
    while rows:
        assert {tensor.dtype for row in rows for tensor in (row.model_input(), row.latents)} == {dtype}
        step(*rows, reproducible=reproducible)
        rows = unfinished(rows)
    for name, mine, other in zip(SOME, batch, exact, strict=True):
        expected = run_to_end(other)[-1]
        assert float((mine.latents - expected).norm() / expected.norm()) < near, name
        assert mine.denoised is not None
        assert mine.denoised.dtype == dtype


@pytest.mark.parametrize("name", SOME)
def test_latents_settable_between_steps(name: str) -> None:
    one, other = started_sampler(by_recurrence, name, shipped()), started_sampler(by_scheduler, name, shipped())
    image, noise, mask = random_tensor(1), random_tensor(2), (random_tensor(3) > 0).float()
    while one.step < one.steps:
        step(one, other)
        for sampler in (one, other):
            protected = sampler.noised_to_step(image, noise, sampler.step)
            sampler.latents = (1 - mask) * protected + mask * sampler.latents
        assert float((one.latents - other.latents).norm() / other.latents.norm()) < 1e-5
    torch.testing.assert_close(one.latents * (1 - mask), image * (1 - mask))


def test_rows_of_different_sizes_in_one_call() -> None:
    shapes = [(1, 4, 4, 4), (1, 4, 4, 8), (1, 4, 64, 64), (1, 24, 16), (1, 4, 4, 4), (1, 4, 64, 64)]
    batch: list[Sampler] = []
    single: list[Sampler] = []
    for into in (batch, single):
        for seed, shape in enumerate(shapes):
            sampler = by_recurrence(
                "euler_ancestral", shipped(), SchedulerSetup(3), torch.Generator().manual_seed(seed)
            )
            sampler.start(random_tensor(seed, shape))
            into.append(sampler)
    while unfinished(batch):
        step(*batch)
    for mine, other in zip(batch, single, strict=True):
        torch.testing.assert_close(mine.latents, run_to_end(other)[-1])


# ---- failures


def state(sampler: Sampler) -> dict[str, torch.Tensor]:
    tensors, _ = unpack_state(sampler.save()())
    return tensors


@both
@pytest.mark.parametrize("wrong", [torch.zeros(1, 4, 4, 5), torch.zeros(2, 4, 4, 6), torch.zeros(SHAPE, device="meta")])
@pytest.mark.parametrize("at", [0, 2])
def test_failing_row_stays_while_others_move(wrong: torch.Tensor, at: int, make: Make) -> None:
    bad = started_sampler(by_recurrence, "unipc", shipped(), seed=9)
    good: list[Sampler] = [started_sampler(make, name, shipped()) for name in SOME]
    step(bad, *good)
    latents, saved = bad.latents, state(bad)
    outputs = [torch.zeros_like(sampler.latents) for sampler in good]
    advance([*good[:at], bad, *good[at:]], [*outputs[:at], wrong, *outputs[at:]])
    assert bad.failure is not None
    assert bad.failure.kind == "error"
    assert "failed at step 1" in bad.failure.message
    assert bad.step == 1
    assert bad.latents is latents
    now = state(bad)
    assert now.keys() == saved.keys()
    assert all(torch.equal(now[name], saved[name]) for name in now)
    for sampler in good:
        assert sampler.failure is None
        assert sampler.step == 2


@pytest.mark.parametrize("name", [name for name in sampler_names("noise") if "kdpm2" not in name])
def test_non_finite_values_stay_in_their_row(name: str) -> None:
    expected = run_to_end(started_sampler(by_recurrence, "dpmpp_2m", shipped(), 5))[-1]
    mine, ill = (
        started_sampler(by_recurrence, "dpmpp_2m", shipped(), 5),
        started_sampler(by_recurrence, name, shipped(), 5, seed=1),
    )
    for _ in range(5):
        step(
            ill, mine, by=lambda recorded, timestep: torch.sin(0.5 * recorded + float(timestep) / 300) + 0.1 * recorded
        )
        ill.latents = torch.full_like(ill.latents, torch.nan)
    torch.testing.assert_close(mine.latents, expected)


@pytest.mark.parametrize("name", SOME)
def test_noise_of_failed_step_reused(name: str) -> None:
    expected = run_to_end(started_sampler(by_recurrence, name, shipped()))[-1]
    unlucky, resumed = (
        started_sampler(by_recurrence, name, shipped()),
        started_sampler(by_recurrence, name, shipped(), seed=5),
    )
    step(unlucky)
    step(unlucky)
    assert isinstance(unlucky, RecurrenceSampler)
    unlucky.draw_noise()  # a step that runs out of memory gets this far
    resumed.restore(unlucky.save()(), torch.device("cpu"))
    assert torch.equal(run_to_end(resumed)[-1], expected)
    assert torch.equal(run_to_end(unlucky)[-1], expected)


@both
def test_step_past_the_end_fails_sampler(make: Make) -> None:
    done, other = started_sampler(make, "ddim", shipped(), 2), started_sampler(make, "ddim", shipped(), 4)
    run_to_end(done)
    last = done.latents
    advance([done, other], [torch.zeros_like(last), torch.zeros_like(last)])
    assert isinstance(done.failure, TaskError)
    assert done.latents is last
    assert (done.step, other.step, other.failure) == (2, 1, None)


def test_unequal_numbers_of_samplers_and_outputs_raise() -> None:
    with pytest.raises(ValueError, match="shorter"):
        advance([started_sampler(by_recurrence, "ddim", shipped())], [])


def test_noise_from_own_generator_only() -> None:
    before = torch.get_rng_state()
    batch = [started_sampler(by_recurrence, name, shipped(), 4, seed) for seed, name in enumerate(SOME)]
    while unfinished(batch):
        step(*unfinished(batch))
    assert torch.equal(torch.get_rng_state(), before)
