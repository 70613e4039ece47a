"""Sampler checkpoints: bit-equal continuation, and rejection of invalid data."""

from __future__ import annotations

import contextlib
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.samplers import (
    EVERY,
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
from worker.engines.diffusion.sampling.plan import get_plan
from worker.engines.diffusion.sampling.state_codec import pack_state, unpack_state

# diffusers' KDPM2 schedulers pass a tensor to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

CPU = torch.device("cpu")


def restored(make: Make, name: str, like: Any, blob: bytes, **schedule: Any) -> Sampler:
    """Restore into a sampler that started with another seed."""
    sampler = started_sampler(make, name, like, seed=77, **schedule)
    sampler.restore(blob, CPU)
    return sampler


@pytest.mark.parametrize(("name", "like"), EVERY)
@both
def test_sampler_resumed_at_any_step_bit_equal(name: str, like: Any, make: Make) -> None:
    check_resume_at_every_step(name, like, make)


@pytest.mark.parametrize(
    "like",
    [
        diffusers.PNDMScheduler(skip_prk_steps=False),  # modifies its own tensor in place
        diffusers.DPMSolverMultistepScheduler(thresholding=True),
        diffusers.DDPMScheduler(clip_sample=True),
    ],
    ids=lambda like: type(like).__name__,
)
def test_scheduler_sampler_resumed_at_any_step_bit_equal(like: Any) -> None:
    assert get_plan("default", like, SchedulerSetup(8)).recurrence is None
    check_resume_at_every_step("default", like, by_scheduler)


def check_resume_at_every_step(name: str, like: Any, make: Make) -> None:
    expected = run_to_end(started_sampler(make, name, like))[-1]
    sampler = started_sampler(make, name, like)
    while sampler.step < sampler.steps:
        saved = sampler.save()
        at = sampler.step
        step(sampler)
        resumed = restored(make, name, like, saved())
        assert resumed.step == at
        assert torch.equal(run_to_end(resumed)[-1], expected)
    finished = restored(make, name, like, sampler.save()())
    assert finished.step == finished.steps
    assert torch.equal(finished.latents, expected)


@both
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_checkpoints_in_half_precision(name: str, dtype: torch.dtype, make: Make) -> None:
    def half(seed: int) -> Sampler:
        sampler = make(name, shipped(), SchedulerSetup(6, 0.7), torch.Generator().manual_seed(seed))
        sampler.start(random_tensor(seed, dtype=dtype), random_tensor(1, dtype=dtype))
        return sampler

    expected = run_to_end(half(5))
    sampler, resumed = half(5), half(6)
    for _ in range(2):
        step(sampler)
    resumed.restore(sampler.save()(), CPU)
    assert expected[-1].dtype == dtype
    assert torch.equal(run_to_end(resumed)[-1], expected[-1])


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral"])
def test_checkpoint_of_one_step_sampler_is_small(name: str) -> None:
    sampler = started_sampler(by_recurrence, name, shipped())
    step(sampler)
    assert len(sampler.save()()) < sampler.latents.numel() * 4 + 5056 + 1000


def damaged(blob: bytes, edit: tuple[int, int, bytes]) -> bytes:
    start, cut, put = edit
    return blob[:start] + put + blob[start + cut :]


@both
@given(blob=st.binary(max_size=300))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_rejected(make: Make, blob: bytes) -> None:
    sampler = started_sampler(make, "dpmpp_2m", shipped())
    before = sampler.latents
    with pytest.raises(TaskError) as rejection:
        sampler.restore(blob, CPU)
    assert rejection.value.kind == "error"
    assert sampler.step == 0
    assert sampler.latents is before


@both
@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_checkpoint_rejected_or_harmless(make: Make, data: st.DataObject) -> None:
    sampler = started_sampler(make, "unipc", shipped())
    for _ in range(4):
        step(sampler)
    blob = sampler.save()()
    edits = st.tuples(st.integers(0, len(blob)) | st.integers(0, 900), st.integers(0, 40), st.binary(max_size=40))
    for edit in data.draw(st.lists(edits, min_size=1, max_size=3)):
        blob = damaged(blob, edit)
    resumed = started_sampler(make, "unipc", shipped(), seed=9)
    with contextlib.suppress(TaskError):
        resumed.restore(blob, CPU)
        assert resumed.step == 4
    run_to_end(resumed)


@both
@pytest.mark.parametrize(
    ("name", "like", "steps", "strength"),
    [
        ("euler", shipped(), 8, 1.0),
        ("dpmpp_2m", shipped(), 9, 1.0),
        ("dpmpp_2m", shipped(), 8, 0.8),
        ("dpmpp_2m", shipped(prediction_type="v_prediction"), 8, 1.0),
    ],
)
def test_checkpoint_of_other_settings_rejected(name: str, like: Any, steps: int, strength: float, make: Make) -> None:
    blob = started_sampler(make, name, like, steps, strength=strength).save()()
    with pytest.raises(TaskError, match="different scheduler or with different settings"):
        restored(make, "dpmpp_2m", shipped(), blob)


@both
def test_checkpoint_of_other_size_or_kind_rejected(make: Make) -> None:
    sampler = started_sampler(make, "dpmpp_2m", shipped())
    step(sampler)
    blob = sampler.save()()
    other = make("dpmpp_2m", shipped(), SchedulerSetup(8), torch.Generator())
    other.start(random_tensor(1, (1, 4, 8, 8)))
    with pytest.raises(TaskError, match=r"'latents' is \[1, 4, 4, 6\]"):
        other.restore(blob, CPU)
    with pytest.raises(TaskError, match="tensors differ from those of this sampler"):
        restored(by_scheduler if make is by_recurrence else by_recurrence, "dpmpp_2m", shipped(), blob)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latents": torch.zeros(SHAPE, dtype=torch.float64)}, "'latents' is .* torch.float64"),
        ({"sample.0": torch.zeros(SHAPE, dtype=torch.int32)}, "'sample.0' is .* torch.int32"),
        ({"output.0": torch.zeros(1, 4, 6, 4)}, "'output.0' is"),
        ({"generator": torch.zeros(5056, dtype=torch.uint8)}, "generator|RNG|mt19937"),
        ({"generator": torch.zeros(16, dtype=torch.uint8)}, "'generator' is"),
        ({"sample.1": torch.zeros(SHAPE)}, "tensors differ"),
        ({"sample.0": None}, "tensors differ"),
        ({"latents": None}, "tensors differ"),
    ],
)
def test_unexpected_tensors_rejected(change: dict[str, torch.Tensor | None], words: str) -> None:
    sampler = started_sampler(by_recurrence, "dpmpp_2m", shipped())
    step(sampler)
    tensors, about = unpack_state(sampler.save()())
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    assert restored(by_recurrence, "dpmpp_2m", shipped(), pack_state(tensors, about)).step == 1
    with pytest.raises(TaskError, match=words):
        restored(by_recurrence, "dpmpp_2m", shipped(), pack_state(changed, about))


@pytest.mark.parametrize("text", ["-1", "9", "1e0", "", "٣", "1" * 5000])
def test_invalid_checkpoint_step_rejected(text: str) -> None:
    sampler = started_sampler(by_recurrence, "ddim", shipped())
    tensors, about = unpack_state(sampler.save()())
    with pytest.raises(TaskError, match="it is at step"):
        restored(by_recurrence, "ddim", shipped(), pack_state(tensors, about | {"step": text}))
