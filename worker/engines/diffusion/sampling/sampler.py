"""One request's sampler: its latents, how far they are, and what its solver remembers.

There are two kinds. `RecurrenceSampler` is a few numbers for each step (see `recurrence`), and many of them move in a
few kernels together (see `stepping`); it works in float32 whatever the model does. `SchedulerSampler`, of the module
`scheduler_sampler`, has a scheduler object of diffusers to itself and is for those that are no recurrence.

Rule: tensors are replaced, never changed in place. Whoever holds one keeps the state of that moment.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from functools import partial

import torch

from worker.engine import TaskError
from worker.engines.diffusion.device import to_device
from worker.engines.diffusion.sampling.plan import SamplingPlan
from worker.engines.diffusion.sampling.recurrence import NoiseDraw, Recurrence, RecurrenceStep, Term
from worker.engines.diffusion.sampling.state_codec import check_tensors, invalid_state, pack_state, unpack_state


class Sampler(abc.ABC):
    """What every request's sampler can do. `begin` comes first."""

    def __init__(self, plan: SamplingPlan, generator: torch.Generator) -> None:
        self._plan = plan
        self._generator = generator
        #: Evaluations done.
        self.step = 0
        #: Why it could not go on; it has not moved since.
        self.failure: TaskError | None = None
        #: Precision of the model.
        self.dtype = torch.float32

    @property
    def timesteps(self) -> torch.Tensor:
        """`(evaluations,)`, on the CPU: what the model is told at each."""
        return self._plan.timesteps

    @property
    def steps(self) -> int:
        """Evaluations in all."""
        return len(self._plan.timesteps)

    @property
    @abc.abstractmethod
    def latents(self) -> torch.Tensor:
        """The picture as it stands, in the model's precision. May be set between steps."""

    @latents.setter
    @abc.abstractmethod
    def latents(self, latents: torch.Tensor) -> None: ...

    @property
    @abc.abstractmethod
    def denoised(self) -> torch.Tensor | None:
        """The best guess at the final latents from the last step; None before it, and for solvers without one."""

    @abc.abstractmethod
    def model_input(self) -> torch.Tensor:
        """What the model is to see of the latents."""

    def start(self, noise: torch.Tensor, image_latents: torch.Tensor | None = None) -> None:
        """Start from noise, or from a picture that is made as noisy as the first timestep is."""
        self.dtype = noise.dtype
        if image_latents is None:
            self.latents = noise * self._plan.noise_scale
        else:
            self.latents = self.noised_to_step(image_latents, noise, self.step)

    def noised_to_step(self, image_latents: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
        """The picture as noisy as it would be before this evaluation; as it is at the end."""
        if step == self.steps:
            return image_latents
        picture, noisy = self._plan.noise_level(step, image_latents.dtype)
        return image_latents * picture + noise * noisy

    def save(self) -> Callable[[], bytes]:
        """The state as it stands: a callable for another thread, free of what happens here meanwhile."""
        tensors = {"latents": self._state(), "generator": self._generator_state()} | self._history_tensors()
        return partial(pack_state, tensors, {"plan": self._plan.id, "step": str(self.step)})

    def restore(self, blob: bytes, device: torch.device) -> None:
        """Go on from a saved state, after `begin`. Raises `TaskError` where it is not one of a sampler like this.

        What was begun with says what shape and precision the state must have.
        """
        tensors, words = unpack_state(bytes(blob))
        if words.get("plan") != self._plan.id:
            raise invalid_state("it was made by another scheduler or with other settings")
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
    def _state(self) -> torch.Tensor:
        """The latents in the precision that is worked in."""

    @abc.abstractmethod
    def _set_state(self, latents: torch.Tensor) -> None: ...

    @abc.abstractmethod
    def _history_tensors(self) -> dict[str, torch.Tensor]:
        """What the solver remembers, by name."""

    @abc.abstractmethod
    def _restore_history(self, tensors: Mapping[str, torch.Tensor], step: int, device: torch.device) -> None:
        """Take `_memory` of that step for one's own. Raises `TaskError` before anything is changed."""


class RecurrenceSampler(Sampler):
    """Knows the numbers of each step, and keeps the few tensors of earlier steps that these are for."""

    def __init__(self, plan: SamplingPlan, generator: torch.Generator) -> None:
        super().__init__(plan, generator)
        assert plan.recurrence is not None
        self._recurrence: Recurrence = plan.recurrence
        self._float_latents = torch.empty(0)
        self._model_latents: torch.Tensor | None = None
        self._model_input: torch.Tensor | None = None
        self._history: dict[Term, torch.Tensor] = {}
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        #: The noise of this step, where an attempt has drawn it, and the generator's state before that.
        self._pending_noise: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def latents(self) -> torch.Tensor:
        """See `Sampler`."""
        if self._model_latents is None:
            self._model_latents = self._float_latents.to(self.dtype)
        return self._model_latents

    @latents.setter
    def latents(self, latents: torch.Tensor) -> None:
        self._float_latents, self._model_latents, self._model_input = latents.float(), latents.to(self.dtype), None

    @property
    def float_latents(self) -> torch.Tensor:
        """The latents in float32."""
        return self._float_latents

    @property
    def current_step(self) -> RecurrenceStep:
        """The numbers of the step that comes. Raises `IndexError` at the end."""
        return self._recurrence.steps[self.step]

    @property
    def next_scale(self) -> float:
        """What the latents after this step will be multiplied with for the model to see."""
        after = self.step + 1
        return self._recurrence.steps[after].scale if after < self.steps else 1.0

    @property
    def denoised(self) -> torch.Tensor | None:
        """See `Sampler`."""
        return None if self._last is None else self._guess_from(*self._last)

    def model_input(self) -> torch.Tensor:
        """See `Sampler`."""
        if self._model_input is None:
            scale = self.current_step.scale
            self._model_input = self.latents if scale == 1 else (self._float_latents * scale).to(self.dtype)
        return self._model_input

    def draw_noise(self) -> torch.Tensor | None:
        """The noise of this step, float32 and on the CPU; the same one if asked again. None where there is none."""
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
        """What this step adds beside the sample, the output and the noise of now, and how much of each."""
        return [(self._history[part], factor) for part, factor in self.current_step.earlier.items()]

    def apply_step(
        self,
        result: torch.Tensor,
        output: torch.Tensor,
        noise: torch.Tensor | None,
        model_latents: torch.Tensor | None = None,
        model_input: torch.Tensor | None = None,
    ) -> None:
        """Take the step that led here: float32 tensors, and in the model's precision what is shown and seen of them."""
        needed = self._recurrence.needed[self.step + 1]
        if needed:
            parts = self._history | {
                Term("sample", self.step): self._float_latents,
                Term("output", self.step): output,
                Term("result", self.step): result,
            }
            if noise is not None:
                parts[Term("noise", self.step)] = noise
            self._history = {part: parts[part] for part in needed}
        else:
            self._history = {}
        self._last = self._float_latents, output
        self._float_latents, self._model_latents, self._model_input, self._pending_noise = (
            result,
            model_latents,
            model_input,
            None,
        )
        self.step += 1

    def _generator_state(self) -> torch.Tensor:
        return super()._generator_state() if self._pending_noise is None else self._pending_noise[1]

    def _state(self) -> torch.Tensor:
        return self._float_latents

    def _set_state(self, latents: torch.Tensor) -> None:
        self._float_latents, self._model_latents, self._model_input, self._pending_noise, self._last = (
            latents,
            None,
            None,
            None,
            None,
        )

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
