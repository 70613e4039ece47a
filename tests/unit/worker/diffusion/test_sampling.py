"""Single samplers: the table of names, start states, results and isolation."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from configs.samplers import MODEL_DEFAULT, SAMPLERS, Process, canonical_sampler, sampler_names
from tests.support.samplers import (
    CHECKPOINTS,
    EVERY,
    SHAPE,
    SOME,
    Make,
    Model,
    both,
    by_recurrence,
    by_scheduler,
    pipeline_latents,
    random_tensor,
    run_to_end,
    shipped,
    started_sampler,
    step,
)
from worker.engine import TaskError
from worker.engines.diffusion.sampling import Sampler, SchedulerSetup, start_sampler
from worker.engines.diffusion.sampling.plan import get_plan
from worker.engines.diffusion.sampling.schedulers import process_of, scheduler_like

# diffusers' KDPM2 schedulers pass a tensor to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

CPU = torch.device("cpu")
every = pytest.mark.parametrize(("name", "like"), EVERY)


def started(name: str, like: Any, steps: int = 8, **schedule: Any) -> Sampler:
    return start_sampler(name, like, SchedulerSetup(steps, **schedule), torch.Generator().manual_seed(0))


# ---- table of names


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_table_matches_diffusers_classes(name: str) -> None:
    sampler = SAMPLERS[name]
    for process in sampler.processes:
        built = scheduler_like(name, shipped(process))
        assert type(built).__name__ == sampler.cls
        assert {option: built.config[option] for option in sampler.options} == dict(sampler.options)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("dpmpp-2m-sde", "dpmpp_2m_sde"),
        ("Euler a", "euler_ancestral"),
        ("uni_pc", "unipc"),
        ("FlowMatchEulerDiscreteScheduler", "flow_match_euler"),
        ("DDIMScheduler", "ddim"),
        (" Default ", MODEL_DEFAULT),
        ("ipndm", None),
        ("", None),
    ],
)
def test_sampler_aliases(text: str, known: str | None) -> None:
    assert canonical_sampler(text) == known


def test_sampler_names_cover_all_processes() -> None:
    assert set(sampler_names()) == {*sampler_names("noise"), *sampler_names("flow"), *sampler_names("edm")}
    assert {"dpmpp_2m", "unipc"} <= set(sampler_names("noise")) & set(sampler_names("flow"))
    assert not set(sampler_names("edm")) & set(sampler_names("noise")) - {MODEL_DEFAULT}


# ---- results: for images whose values are N(1.5, 0.4), the perfect model is known

ALPHAS = diffusers.DDPMScheduler.from_config(shipped().config).alphas_cumprod


def knows_noise(recorded: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    low = int(timestep)
    alpha = torch.lerp(ALPHAS[low], ALPHAS[min(low + 1, 999)], float(timestep) - low)
    image, noise = alpha.sqrt(), (1 - alpha).sqrt()
    return noise * (recorded - image * 1.5) / (image**2 * 0.16 + noise**2)


def knows_flow(recorded: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    noise = float(timestep) / 1000
    image = 1 - noise
    off = (recorded - image * 1.5) / (image**2 * 0.16 + noise**2)
    return noise * off - (1.5 + image * 0.16 * off)


def knows_edm(recorded: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    sigma = float(torch.exp(4 * timestep))
    length = math.hypot(sigma, 0.5)
    noisy = recorded * length
    final = 1.5 + 0.16 / (0.16 + sigma**2) * (noisy - 1.5)
    return (final - 0.25 / length**2 * noisy) / (sigma * 0.5 / length)


#: For few steps of distilled models; with others they generate the mean of all images.
DISTILLED = {"lcm", "flow_match_lcm"}
PERFECT: list[tuple[Process, Model]] = [("noise", knows_noise), ("flow", knows_flow), ("edm", knows_edm)]


@pytest.mark.parametrize(
    ("name", "like", "knows"),
    [
        pytest.param(name, shipped(process), knows, id=f"{name}-{process}")
        for process, knows in PERFECT
        for name in sampler_names(process)
        if name not in DISTILLED
    ],
)
def test_samplers_reach_known_distribution(name: str, like: Any, knows: Model) -> None:
    sampler = started(name, like, 50)
    sampler.start(random_tensor(1, (1, 1, 1, 4000)))
    images = run_to_end(sampler, knows)[-1]
    assert float(images.mean()) == pytest.approx(1.5, abs=0.1)
    assert float(images.std()) == pytest.approx(0.4, abs=0.06)


# ---- start states


@every
def test_scheduler_sampler_bit_equal_to_pipelines(name: str, like: Any) -> None:
    sampler = started_sampler(by_scheduler, name, like, seed=3)
    scheduler = scheduler_like(name, like)
    scheduler.set_timesteps(8)
    start = random_tensor(3) * getattr(scheduler, "init_noise_sigma", 1.0)
    assert torch.equal(sampler.latents, start)
    expected = pipeline_latents(scheduler, scheduler.timesteps, start, 3)
    assert torch.equal(sampler.timesteps, scheduler.timesteps)
    assert all(map(torch.equal, run_to_end(sampler), expected))


PIPELINES: dict[Process, Any] = {
    "noise": diffusers.StableDiffusionImg2ImgPipeline,
    "flow": diffusers.StableDiffusion3Img2ImgPipeline,
    "edm": diffusers.StableDiffusionXLImg2ImgPipeline,
}


def noised_by(scheduler: Any, image: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> Any:
    """Add noise as the pipelines do."""
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(image, timestep, noise)
    return scheduler.add_noise(image, noise, timestep)


#: All but the one that cannot add noise to an image, so that no pipeline uses it.
every_with_images = pytest.mark.parametrize(
    ("name", "like"), [case for case in EVERY if case.values[0] != "flow_match_euler_ancestral"]
)


def cut(scheduler: Any, like: Any, steps: int, strength: float) -> tuple[torch.Tensor, int]:
    """Return the timesteps that the pipelines keep, and the number of steps."""
    scheduler.set_timesteps(steps)
    timesteps, left = PIPELINES[process_of(like)].get_timesteps(
        SimpleNamespace(scheduler=scheduler), steps, strength, CPU
    )
    return timesteps, left


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("default", "noise"),
        ("default", "flow"),
        ("default", "edm"),
        ("dpmpp_2m", "noise"),
        ("dpmpp_2m", "flow"),
        ("heun", "noise"),
        ("flow_match_heun", "flow"),
    ],
)
@pytest.mark.parametrize("steps", [1, 4, 7, 10, 29])
def test_strength_skips_same_steps_as_pipelines(name: str, process: Process, steps: int) -> None:
    like = shipped(process)
    for strength in (0.01, 0.29, 0.34, 0.5, 0.75, 0.99, 1.0):
        expected, left = cut(scheduler_like(name, like), like, steps, strength)
        if left:
            assert torch.equal(started(name, like, steps, strength=strength).timesteps, expected)
        else:
            with pytest.raises(TaskError, match="leaves none"):
                started(name, like, steps, strength=strength)


@every_with_images
def test_image_to_image_equals_pipelines(name: str, like: Any) -> None:
    scheduler = scheduler_like(name, like)
    timesteps, _ = cut(scheduler, like, 9, 0.75)
    image, noise = random_tensor(1), random_tensor(3)
    start = noised_by(scheduler, image, noise, timesteps[:1])
    expected = pipeline_latents(scheduler, timesteps, start, 3)

    generator = torch.Generator().manual_seed(3)
    sampler = by_scheduler(name, like, SchedulerSetup(9, 0.75), generator)
    sampler.start(torch.randn(SHAPE, generator=generator), image)
    assert torch.equal(sampler.timesteps, timesteps)
    assert torch.equal(sampler.latents, start)
    assert all(map(torch.equal, run_to_end(sampler), expected))


@every_with_images
def test_masked_image_noise_equals_pipelines(name: str, like: Any) -> None:
    sampler = started_sampler(by_recurrence, name, like, strength=0.6)
    scheduler = get_plan(name, like, SchedulerSetup(8, 0.6)).scheduler()
    image, noise = random_tensor(1), random_tensor(2)
    for index, timestep in enumerate(sampler.timesteps):
        expected = noised_by(copy.copy(scheduler), image, noise, sampler.timesteps[index : index + 1])
        assert torch.equal(sampler.noised_to_step(image, noise, index), expected)
        scaled = scheduler.scale_model_input(image, timestep) if hasattr(scheduler, "scale_model_input") else image
        scheduler.step(scaled, timestep, image)
    assert sampler.noised_to_step(image, noise, sampler.steps) is image


def test_flow_scheduler_without_add_noise_uses_euler_noise() -> None:
    without_add_noise, euler = (
        started(name, shipped("flow")) for name in ("flow_match_euler_ancestral", "flow_match_euler")
    )
    for index in range(8):
        assert torch.equal(
            without_add_noise.noised_to_step(random_tensor(1), random_tensor(2), index),
            euler.noised_to_step(random_tensor(1), random_tensor(2), index),
        )


def test_timestep_shift_by_image_size() -> None:
    like = shipped("flow", use_dynamic_shifting=True)
    for name in sampler_names("flow"):
        flat, steep = (started(name, like, 8, options={"mu": mu}).timesteps for mu in (0.5, 1.15))
        assert float(steep.double().mean()) > float(flat.double().mean())
    plain = diffusers.FlowMatchEulerDiscreteScheduler(shift=math.exp(0.8))
    for name in ("dpmpp_2m", "unipc", "flow_match_heun"):
        shifted = started(name, like, 8, options={"mu": 0.8}).timesteps
        torch.testing.assert_close(shifted, started(name, plain, 8).timesteps)
    given_steps = started("flow_match_euler", shipped("flow"), 3, options={"sigmas": [1.0, 0.5, 0.25]})
    torch.testing.assert_close(given_steps.timesteps, torch.tensor([1000.0, 750.0, 500.0]))


@pytest.mark.parametrize(
    ("name", "like", "schedule", "words"),
    [
        ("lcm", shipped(), SchedulerSetup(60), "does not support 60 steps"),
        ("tcd", shipped(), SchedulerSetup(51), "does not support 51 steps"),
        ("ddim", shipped(), SchedulerSetup(1001), "does not support 1001 steps"),
        ("kdpm2", shipped(prediction_type="sample"), SchedulerSetup(8), "scheduler 'kdpm2' does not support 8 steps"),
        (
            "tcd",
            diffusers.DDIMScheduler(prediction_type="sample"),
            SchedulerSetup(0),
            "scheduler 'tcd' does not support 0 steps",
        ),
        ("flow_match_euler", shipped(), SchedulerSetup(8), "allowed: default, ddim, ddpm"),
        ("edm_euler", shipped(), SchedulerSetup(8), "cannot be used with this model"),
        ("euler", shipped("flow"), SchedulerSetup(8), "allowed: default, dpmpp_2m, "),
        ("dpmpp_2m_karras", shipped("flow"), SchedulerSetup(8), "cannot be used with this model"),
        ("dpmpp_2m", shipped("edm"), SchedulerSetup(8), "allowed: default, edm_euler, edm_dpmpp_2m"),
        ("ddim", shipped(), SchedulerSetup(4, 0.2), "strength 0.2 leaves none of 4 steps"),
        ("pndm", shipped(), SchedulerSetup(4, 0.2), "strength 0.2 leaves none of 4 steps"),
        ("default", shipped("flow"), SchedulerSetup(4, 0.0), "strength 0 leaves none of 4 steps"),
    ],
)
def test_incompatible_settings_rejected(name: str, like: Any, schedule: SchedulerSetup, words: str) -> None:
    with pytest.raises(TaskError) as rejection:
        start_sampler(name, like, schedule, torch.Generator())
    assert rejection.value.kind == "invalid"
    assert words in rejection.value.message


# ---- isolation


def test_shipped_scheduler_not_modified() -> None:
    like = diffusers.DPMSolverMultistepScheduler()
    before = copy.deepcopy(vars(like))
    run_to_end(started_sampler(by_scheduler, MODEL_DEFAULT, like, 5))
    assert {name: str(value) for name, value in vars(like).items()} == {k: str(v) for k, v in before.items()}


@both
@pytest.mark.parametrize("name", SOME)
def test_samplers_share_no_state_and_no_in_place_changes(name: str, make: Make) -> None:
    single = run_to_end(started_sampler(make, name, shipped(), seed=3))
    one, other = started_sampler(make, name, shipped(), seed=3), started_sampler(make, name, shipped(), seed=4)
    alpha = []
    for expected in single:
        alpha += [(tensor, tensor.clone()) for tensor in (one.latents, one.model_input())]
        step(one)
        step(other, by=lambda recorded, _: -recorded)
        assert torch.equal(one.latents, expected)
    assert all(torch.equal(tensor, copy) for tensor, copy in alpha)


# ---- previews


@both
@pytest.mark.parametrize(
    ("name", "like"),
    [
        pytest.param(name, shipped(process, **config), id=f"{name}-{process}-{config}")
        for process, config in CHECKPOINTS
        if process != "edm"
        for name in sampler_names(process)
        if name not in DISTILLED  # these rely on their input more than on the model
    ],
)
def test_denoised_estimate_exact_for_perfect_model(name: str, like: Any, make: Make) -> None:
    sampler = started_sampler(make, name, like)
    before = sampler.denoised
    assert before is None
    image, noise = 3.0 * random_tensor(1), random_tensor(2)
    noisy = sampler.noised_to_step(image, noise, 0)
    sampler.latents = noisy
    recorded = sampler.model_input()
    scale = float((recorded * noisy).sum() / (noisy * noisy).sum())
    image_factor, of_noise = (
        float(sampler.noised_to_step(*pair, 0).mean()) * scale for pair in ((ONE, ZERO), (ZERO, ONE))
    )
    output = {"epsilon": noise, "v_prediction": image_factor * noise - of_noise * image}
    predicts = like.config.get("prediction_type", "flow")
    step(sampler, by=lambda *_: output.get(predicts, noise - image))
    assert sampler.denoised is not None
    torch.testing.assert_close(sampler.denoised, image, rtol=1e-3, atol=3e-3)


ONE, ZERO = torch.ones(SHAPE), torch.zeros(SHAPE)
