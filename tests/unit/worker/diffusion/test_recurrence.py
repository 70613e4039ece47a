"""Recurrences: they equal their schedulers, and nonlinear schedulers have none."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from tests.support.samplers import EVERY, by_recurrence, by_scheduler, run_to_end, shipped, started_sampler
from worker.engines.diffusion.sampling import start_sampler
from worker.engines.diffusion.sampling.plan import get_plan
from worker.engines.diffusion.sampling.recurrence import NoiseDraw, Recurrence, Term, derive_recurrence
from worker.engines.diffusion.sampling.sampler import RecurrenceSampler
from worker.engines.diffusion.sampling.scheduler_sampler import SchedulerSampler
from worker.engines.diffusion.sampling.schedulers import SchedulerSetup

# diffusers' KDPM2 schedulers pass a tensor to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


def recurrence(name: str, like: Any, steps: int = 12, **schedule: Any) -> Recurrence:
    found = get_plan(name, like, SchedulerSetup(steps, **schedule)).recurrence
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "like"), EVERY)
@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (3, 1.0), (13, 0.7)])
def test_recurrence_equals_scheduler(name: str, like: Any, steps: int, strength: float) -> None:
    one, other = (started_sampler(make, name, like, steps, strength=strength) for make in (by_recurrence, by_scheduler))
    torch.testing.assert_close(one.model_input(), other.model_input())
    start = one.latents  # up to 80 times larger than the results, with corresponding rounding
    for mine, expected in zip(run_to_end(one), run_to_end(other), strict=True):
        assert float((mine - expected).norm()) < 1e-5 * float(expected.norm() + start.norm())


@pytest.mark.parametrize(
    ("name", "max_terms"),
    [("ddim", 0), ("euler_ancestral", 0), ("dpmpp_2m", 2), ("pndm", 4), ("lms", 3), ("heun", 2), ("unipc", 5)],
)
def test_history_size_independent_of_step_count(name: str, max_terms: int) -> None:
    for steps in (10, 60):
        assert max(map(len, recurrence(name, shipped(), steps).needed)) <= max_terms
    assert recurrence(name, shipped()).needed[-1] == frozenset()


def test_ddim_coefficients_match_formula() -> None:
    like = shipped()
    alpha = diffusers.DDIMScheduler.from_config(like.config).alphas_cumprod.double()
    timesteps = get_plan("ddim", like, SchedulerSetup(12)).timesteps
    for step, now, after in zip(recurrence("ddim", like).steps[:-1], timesteps, timesteps[1:], strict=False):
        of_sample = (alpha[after] / alpha[now]).sqrt()
        assert step.sample == pytest.approx(float(of_sample), rel=1e-6)
        of_output = (1 - alpha[after]).sqrt() - of_sample * (1 - alpha[now]).sqrt()
        assert step.output == pytest.approx(float(of_output), rel=1e-5)
        assert (step.noise, step.earlier, step.scale, step.noise_draw) == (0, {}, 1, NoiseDraw.NOTHING)


def test_flow_coefficients_match_formula() -> None:
    plan = get_plan("default", shipped("flow"), SchedulerSetup(12))
    levels = [*(plan.timesteps.double() / 1000).tolist(), 0.0]
    for step, now, after in zip(recurrence("default", shipped("flow")).steps, levels, levels[1:], strict=False):
        assert (step.sample, step.earlier) == (1, {})
        assert step.output == pytest.approx(after - now, rel=1e-5)


def test_noise_dtype_and_factors_detected() -> None:
    assert {step.noise_draw for step in recurrence("dpmpp_2m_sde", shipped()).steps} == {NoiseDraw.FLOAT32}
    ancestral = recurrence("euler_ancestral", shipped()).steps
    assert {step.noise_draw for step in ancestral} == {NoiseDraw.MODEL}  # the last noise is drawn but not used
    assert [step.noise > 0 for step in ancestral] == [True] * 11 + [False]
    kdpm2 = recurrence("kdpm2_ancestral", shipped()).steps
    assert [step.noise_draw for step in kdpm2[:4]] == [NoiseDraw.NOTHING, NoiseDraw.MODEL] * 2
    again = recurrence("sasolver", shipped(), strength=0.6).steps
    assert Term("noise", 0) in again[1].earlier


def test_older_history_replaced_by_previous_result() -> None:
    steps = recurrence("unipc", shipped(), 20).steps
    assert all(Term("result", index - 1) in steps[index].earlier for index in range(3, 19))


class Clipping(diffusers.DDIMScheduler):  # type: ignore[misc]
    """Clips its result without a flag in its configuration."""

    def step(self, *args: Any, **options: Any) -> Any:
        shifted = super().step(*args, **options)
        shifted.prev_sample = shifted.prev_sample.clamp(-1e5, 1e5)
        return shifted


@pytest.mark.parametrize(
    "like",
    [
        diffusers.DDIMScheduler(clip_sample=True),
        diffusers.DDIMScheduler(clip_sample=True, clip_sample_range=1e6),
        diffusers.DDPMScheduler(clip_sample=True),
        diffusers.LCMScheduler(clip_sample=True),
        diffusers.DDIMScheduler(clip_sample=False, thresholding=True),
        diffusers.DPMSolverMultistepScheduler(thresholding=True),
        Clipping(clip_sample=False),
    ],
    ids=lambda like: f"{type(like).__name__}-{like.config.get('clip_sample_range')}-{like.config.thresholding}",
)
def test_nonlinear_scheduler_uses_scheduler_sampler(like: Any) -> None:
    sampler = start_sampler("default", like, SchedulerSetup(6), torch.Generator().manual_seed(0))
    assert isinstance(sampler, SchedulerSampler)
    plain = start_sampler("euler", like, SchedulerSetup(6), torch.Generator().manual_seed(0))
    assert isinstance(plain, RecurrenceSampler)


def test_scheduler_drawing_twice_has_no_recurrence() -> None:
    class Twice(diffusers.EulerAncestralDiscreteScheduler):  # type: ignore[misc]
        def step(self, *args: Any, generator: torch.Generator, **options: Any) -> Any:
            torch.randn(5, generator=generator)
            return super().step(*args, generator=generator, **options)

    def make() -> Any:
        scheduler = Twice()
        scheduler.set_timesteps(5)
        return scheduler

    assert derive_recurrence(make, make().timesteps) is None


def test_equal_settings_share_a_plan() -> None:
    plan = get_plan("unipc", shipped(), SchedulerSetup(9, 0.8, {"mu": 1.0}))
    assert get_plan("unipc", shipped(), SchedulerSetup(9, 0.8, {"mu": 1.0})) is plan
    others = [
        get_plan("unipc_karras", shipped(), SchedulerSetup(9, 0.8)),
        get_plan("unipc", shipped(prediction_type="v_prediction"), SchedulerSetup(9, 0.8)),
        get_plan("unipc", shipped(), SchedulerSetup(10, 0.8)),
        get_plan("unipc", shipped(), SchedulerSetup(9, 0.9)),
    ]
    assert len({plan.id, *(other.id for other in others)}) == 5


@pytest.mark.parametrize("name", ["ddim", "dpmpp_3m_karras", "unipc", "lms", "lcm"])
def test_default_plan_equals_named_plan(name: str) -> None:
    named = get_plan(name, shipped(), SchedulerSetup(5))
    assert get_plan("default", named.scheduler(), SchedulerSetup(5)).id == named.id
