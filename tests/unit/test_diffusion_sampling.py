"""The table of samplers against the installed diffusers, and what a request's own sampler keeps to itself."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch

from configs.schedulers import MODEL_DEFAULT, SAMPLERS, names
from worker.engine import TaskError
from worker.engines.diffusion.sampling import Sampling, start_sampling

# diffusers' KDPM2 schedulers hand a tensor to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

LATENTS = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(7))


def shipped(prediction_type: str = "epsilon") -> diffusers.PNDMScheduler:
    """What most checkpoints of Stable Diffusion 1.x ship."""
    return diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def started(name: str, steps: int = 8, seed: int = 0) -> Sampling:
    return start_sampling(name, shipped(), steps, torch.Generator().manual_seed(seed))


def walk(sampling: Sampling) -> list[torch.Tensor]:
    """The latents after each step, with a model whose output is half of what it sees."""
    latents, seen = LATENTS * sampling.noise_scale, []
    for step in range(len(sampling.timesteps)):
        latents, _ = sampling.advance(0.5 * sampling.scaled(latents, step), step, latents)
        seen.append(latents)
    return seen


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_row_of_the_table_is_a_class_of_diffusers_that_knows_its_options(name: str) -> None:
    sampler = SAMPLERS[name]
    built = getattr(diffusers, sampler.cls).from_config(shipped().config, **sampler.options)
    assert {option: built.config[option] for option in sampler.options} == dict(sampler.options)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("steps", [4, 8, 25])
def test_every_sampler_reaches_a_finite_end(name: str, steps: int) -> None:
    sampling = started(name, steps)
    assert len(sampling.timesteps) >= steps
    assert sampling.timesteps.device.type == "cpu"
    assert all(torch.isfinite(latents).all() for latents in walk(sampling))


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("ddim", 10), ("euler", 10), ("heun", 19), ("kdpm2", 19), ("pndm", 11), (MODEL_DEFAULT, 11)],
)
def test_a_sampler_may_need_more_evaluations_than_steps(name: str, evaluations: int) -> None:
    assert len(started(name, 10).timesteps) == evaluations


@pytest.mark.parametrize("name", names())
def test_samplers_of_one_kind_share_nothing(name: str) -> None:
    alone = walk(started(name, seed=3))
    one, other = started(name, seed=3), started(name, steps=11, seed=4)
    mine, theirs = LATENTS * one.noise_scale, -LATENTS * other.noise_scale
    for step, expected in enumerate(alone):
        theirs, _ = other.advance(0.1 * other.scaled(theirs, step), step, theirs)
        mine, _ = one.advance(0.5 * one.scaled(mine, step), step, mine)
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("name", names())
def test_latents_are_replaced_and_not_changed_in_place(name: str) -> None:
    sampling = started(name)
    latents = LATENTS * sampling.noise_scale
    kept = []
    for step in range(len(sampling.timesteps)):
        moved, guess = sampling.advance(0.5 * sampling.scaled(latents, step), step, latents)
        kept += [(tensor, tensor.clone()) for tensor in (latents, moved, guess)]
        latents = moved
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


@pytest.mark.parametrize("name", names())
def test_asking_twice_for_the_same_step_changes_nothing(name: str) -> None:
    expected = walk(started(name, seed=5))
    sampling = started(name, seed=5)
    latents = LATENTS * sampling.noise_scale
    for step in range(len(expected)):
        assert torch.equal(sampling.scaled(latents, step), sampling.scaled(latents, step))
        latents, _ = sampling.advance(0.5 * sampling.scaled(latents, step), step, latents)
    assert torch.equal(latents, expected[-1])


@pytest.mark.parametrize("name", ["ddim", "ddpm", "lcm", "euler", "euler_ancestral", "heun"])
def test_the_guess_is_the_picture_where_the_model_knows_the_noise(name: str) -> None:
    picture, noise = 3.0 * LATENTS, torch.randn(LATENTS.shape, generator=torch.Generator().manual_seed(8))
    sampling = started(name)
    kept = diffusers.DDPMScheduler.from_config(shipped().config).alphas_cumprod[int(sampling.timesteps[0])]
    noisy = kept.sqrt() * picture + (1 - kept).sqrt() * noise
    if float(sampling.noise_scale) > 2:  # these solvers keep the picture at full strength and drown it in noise
        noisy = noisy / kept.sqrt()
    moved, guess = sampling.advance(noise, 0, noisy)
    torch.testing.assert_close(guess, picture, rtol=1e-2, atol=1e-2)
    assert float((moved - picture).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["ddim", "ddpm", "lcm", "tcd"])
def test_latents_are_not_clipped_to_the_range_of_a_picture(name: str) -> None:
    pattern = diffusers.EulerDiscreteScheduler(prediction_type="sample")  # its configuration says nothing of clipping
    sampling = start_sampling(name, pattern, 4, torch.Generator().manual_seed(0))
    latents = LATENTS * sampling.noise_scale
    for step in range(4):
        latents, _ = sampling.advance(torch.full_like(LATENTS, 5.0), step, latents)
    torch.testing.assert_close(latents, torch.full_like(LATENTS, 5.0), rtol=0.05, atol=0.05)


def test_a_solver_that_makes_no_guess_shows_its_latents() -> None:
    sampling = started("dpmpp_2m")
    moved, guess = sampling.advance(torch.zeros_like(LATENTS), 0, LATENTS)
    assert guess is moved


def test_the_shipped_scheduler_is_only_a_pattern() -> None:
    pattern = diffusers.DPMSolverMultistepScheduler()
    before = copy.deepcopy(vars(pattern))
    sampling = start_sampling(MODEL_DEFAULT, pattern, 5, torch.Generator())
    assert len(sampling.timesteps) == 5
    walk(sampling)
    for name, value in vars(pattern).items():
        assert str(value) == str(before[name])


@pytest.mark.parametrize(
    ("name", "prediction_type", "steps", "words"),
    [
        ("lcm", "epsilon", 60, "cannot do 60 steps"),
        ("tcd", "epsilon", 51, "cannot do 51 steps"),
        ("ddim", "epsilon", 1001, "cannot do 1001 steps"),
        ("ipndm", "v_prediction", 8, "does not know 'v_prediction'"),
    ],
)
def test_refusals_name_the_scheduler_and_the_reason(name: str, prediction_type: str, steps: int, words: str) -> None:
    with pytest.raises(TaskError) as refused:
        start_sampling(name, shipped(prediction_type), steps, torch.Generator())
    assert refused.value.kind == "invalid"
    assert f"scheduler '{name}'" in refused.value.message
    assert words in refused.value.message
