"""`Sampler`: one request's latents, position and solver history.

`RecurrenceSampler` uses the coefficients of a `Recurrence` in float32, and many move together (see `batched_step`).
`SchedulerSampler`, in `scheduler_sampler`, wraps a diffusers scheduler object, for solvers that are not linear.

Tensors are replaced, never changed in place, so that a reference keeps its state.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch

from worker.engine import TaskError
from worker.engines.diffusion.sampling.plan import SamplingPlan
from worker.engines.diffusion.sampling.recurrence import NoiseDraw, Recurrence, RecurrenceStep, Term
from worker.engines.diffusion.sampling.state_codec import check_tensors, invalid_state, pack_state, unpack_state
from worker.engines.torch_device import to_device


class Sampler(abc.ABC):
    """The sampler of one request. Call `start` first."""

    def __init__(self, plan: SamplingPlan, generator: torch.Generator) -> None:
        self._plan = plan
        self._generator = generator
        #: Evaluations done.
        self.step = 0
        #: Set when a step failed. The sampler has not moved since.
        self.failure: TaskError | None = None
        #: The model's dtype.
        self.dtype = torch.float32

    def fail(self, error: TaskError) -> None:
        """Stop this sampler. The next step of its row raises the error."""
        self.failure = error

    @property
    def timesteps(self) -> torch.Tensor:
        """`(evaluations,)`, on the CPU."""
        return self._plan.timesteps

    @property
    def steps(self) -> int:
        return len(self._plan.timesteps)

    @property
    @abc.abstractmethod
    def latents(self) -> torch.Tensor:
        """Current latents in the model's dtype. Settable between steps."""

    @latents.setter
    @abc.abstractmethod
    def latents(self, latents: torch.Tensor) -> None: ...

    @property
    @abc.abstractmethod
    def denoised(self) -> torch.Tensor | None:
        """The denoised estimate of the last step; None before it, or if the solver has none."""

    @abc.abstractmethod
    def model_input(self) -> torch.Tensor: ...

    def start(self, noise: torch.Tensor, image_latents: torch.Tensor | None = None) -> None:
        """Start from noise, or from an image with the noise level of the first timestep."""
        self.dtype = noise.dtype
        if image_latents is None:
            self.latents = noise * self._plan.noise_scale
        else:
            self.latents = self.noised_to_step(image_latents, noise, self.step)

    def noised_to_step(self, image_latents: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
        """Add the noise level of this evaluation to the image; none at the end."""
        if step == self.steps:
            return image_latents
        image_factor, noisy = self._plan.noise_level(step, image_latents.dtype)
        return image_latents * image_factor + noise * noisy

    def save(self) -> Callable[[], bytes]:
        """Return a callable that serializes the current state, for another thread."""
        tensors = {"latents": self._state(), "generator": self._generator_state()} | self._history_tensors()
        return partial(pack_state, tensors, {"plan": self._plan.id, "step": str(self.step)})

    def restore(self, blob: bytes, device: torch.device) -> None:
        """Continue from a saved state, after `start`. Raises `TaskError` if it does not fit this sampler.

        The started state determines the expected shape and dtype.
        """
        tensors, words = unpack_state(bytes(blob))
        if words.get("plan") != self._plan.id:
            raise invalid_state("it was saved by a different scheduler or with different settings")
        step = _number(words.get("step", ""), self.steps)
        expected = {"latents": self._state(), "generator": self._generator_state()}
        found = {name: tensors.pop(name) for name in expected if name in tensors}
        check_tensors(found, {name: (tensor.shape, tensor.dtype) for name, tensor in expected.items()})
        try:
            generator = torch.Generator()
            generator.set_state(found["generator"])
        except RuntimeError as error:
            raise invalid_state(str(error)) from error
        self._restore_history(tensors, step, device)
        self._generator.set_state(found["generator"])
        self._set_state(to_device(found["latents"], device))
        self.step = step

    def _guess_from(self, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
        factors = self._plan.denoised(self.step - 1)
        return None if factors is None else (sample * factors[0] + output * factors[1]).to(self.dtype)

    def _generator_state(self) -> torch.Tensor:
        """The generator's state before this step, as bytes."""
        return self._generator.get_state()

    @abc.abstractmethod
    def _state(self) -> torch.Tensor: ...

    @abc.abstractmethod
    def _set_state(self, latents: torch.Tensor) -> None: ...

    @abc.abstractmethod
    def _history_tensors(self) -> dict[str, torch.Tensor]: ...

    @abc.abstractmethod
    def _restore_history(self, tensors: Mapping[str, torch.Tensor], step: int, device: torch.device) -> None:
        """Set the history of that step. Raises `TaskError` before anything is changed."""


class StepUpdate(NamedTuple):
    """The result of one step. The first three tensors are float32, the others have the model's dtype."""

    result: torch.Tensor
    output: torch.Tensor
    noise: torch.Tensor | None
    model_latents: torch.Tensor | None = None
    model_input: torch.Tensor | None = None


class RecurrenceSampler(Sampler):
    """Applies the coefficients of a recurrence; keeps the tensors of earlier steps that they need."""

    def __init__(self, plan: SamplingPlan, generator: torch.Generator) -> None:
        super().__init__(plan, generator)
        assert plan.recurrence is not None
        self._recurrence: Recurrence = plan.recurrence
        self._float_latents = torch.empty(0)
        self._model_latents: torch.Tensor | None = None
        self._model_input: torch.Tensor | None = None
        self._history: dict[Term, torch.Tensor] = {}
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        #: The noise of this step, if an attempt has drawn it, and the generator's state before that.
        self._pending_noise: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def latents(self) -> torch.Tensor:
        if self._model_latents is None:
            self._model_latents = self._float_latents.to(self.dtype)
        return self._model_latents

    @latents.setter
    def latents(self, latents: torch.Tensor) -> None:
        self._float_latents, self._model_latents, self._model_input = latents.float(), latents.to(self.dtype), None

    @property
    def float_latents(self) -> torch.Tensor:
        return self._float_latents

    @property
    def current_step(self) -> RecurrenceStep:
        """The coefficients of the next step. Raises `IndexError` at the end."""
        return self._recurrence.steps[self.step]

    @property
    def next_scale(self) -> float:
        """The factor of the model's input after this step."""
        after = self.step + 1
        return self._recurrence.steps[after].scale if after < self.steps else 1.0

    @property
    def denoised(self) -> torch.Tensor | None:
        return None if self._last is None else self._guess_from(*self._last)

    def model_input(self) -> torch.Tensor:
        if self._model_input is None:
            scale = self.current_step.scale
            self._model_input = self.latents if scale == 1 else (self._float_latents * scale).to(self.dtype)
        return self._model_input

    def draw_noise(self) -> torch.Tensor | None:
        """Return this step's noise, float32 on the CPU; repeated calls return the same. None without noise."""
        if self.current_step.noise_draw is NoiseDraw.NOTHING:
            return None
        if self._pending_noise is None:
            before = self._generator.get_state()
            dtype = self.dtype if self.current_step.noise_draw is NoiseDraw.MODEL else torch.float32
            self._pending_noise = (
                torch.randn(self._float_latents.shape, generator=self._generator, dtype=dtype).float(),
                before,
            )
        return self._pending_noise[0]

    def earlier_terms(self) -> list[tuple[torch.Tensor, float]]:
        """Return the tensors of earlier steps in this step's sum, with their factors."""
        return [(self._history[part], factor) for part, factor in self.current_step.earlier.items()]

    def apply_step(self, update: StepUpdate) -> None:
        needed = self._recurrence.needed[self.step + 1]
        terms = self._history | {
            Term("sample", self.step): self._float_latents,
            Term("output", self.step): update.output,
            Term("result", self.step): update.result,
        }
        if update.noise is not None:
            terms[Term("noise", self.step)] = update.noise
        self._history = {term: terms[term] for term in needed}
        self._last = self._float_latents, update.output
        self._float_latents = update.result
        self._model_latents, self._model_input = update.model_latents, update.model_input
        self._pending_noise = None
        self.step += 1

    def _generator_state(self) -> torch.Tensor:
        return super()._generator_state() if self._pending_noise is None else self._pending_noise[1]

    def _state(self) -> torch.Tensor:
        return self._float_latents

    def _set_state(self, latents: torch.Tensor) -> None:
        self._float_latents = latents
        self._model_latents = self._model_input = self._pending_noise = self._last = None

    def _history_tensors(self) -> dict[str, torch.Tensor]:
        return {f"{part.kind}.{part.step}": tensor for part, tensor in self._history.items()}

    def _restore_history(self, tensors: Mapping[str, torch.Tensor], step: int, device: torch.device) -> None:
        names = {f"{part.kind}.{part.step}": part for part in self._recurrence.needed[step]}
        check_tensors(tensors, dict.fromkeys(names, (self._float_latents.shape, torch.float32)))
        self._history = {part: to_device(tensors[name], device) for name, part in names.items()}


def _number(text: str, maximum: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and int(text) <= maximum):
        raise invalid_state(f"it is at step {text[:20]!r} of {maximum}")
    return int(text)
