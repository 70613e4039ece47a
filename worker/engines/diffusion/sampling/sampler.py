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
from worker.engines.diffusion.device import moved
from worker.engines.diffusion.sampling.plan import Plan
from worker.engines.diffusion.sampling.recurrence import Draws, Part, Recurrence, Step
from worker.engines.diffusion.sampling.state_codec import check, packed, refused, unpacked


class Sampler(abc.ABC):
    """What every request's sampler can do. `begin` comes first."""

    def __init__(self, plan: Plan, generator: torch.Generator) -> None:
        self._plan = plan
        self._generator = generator
        #: Evaluations done.
        self.step = 0
        #: Why it could not go on; it has not moved since.
        self.broken: TaskError | None = None
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
    def guess(self) -> torch.Tensor | None:
        """The best guess at the final latents from the last step; None before it, and for solvers without one."""

    @abc.abstractmethod
    def model_input(self) -> torch.Tensor:
        """What the model is to see of the latents."""

    def begin(self, noise: torch.Tensor, image_latents: torch.Tensor | None = None) -> None:
        """Start from noise, or from a picture that is made as noisy as the first timestep is."""
        self.dtype = noise.dtype
        if image_latents is None:
            self.latents = noise * self._plan.noise_scale
        else:
            self.latents = self.noised(image_latents, noise, self.step)

    def noised(self, image_latents: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
        """The picture as noisy as it would be before this evaluation; as it is at the end."""
        if step == self.steps:
            return image_latents
        picture, noisy = self._plan.level(step, image_latents.dtype)
        return image_latents * picture + noise * noisy

    def save(self) -> Callable[[], bytes]:
        """The state as it stands: a callable for another thread, free of what happens here meanwhile."""
        tensors = {"latents": self._state(), "generator": self._chance()} | self._memory()
        return partial(packed, tensors, {"plan": self._plan.id, "step": str(self.step)})

    def restore(self, blob: bytes, device: torch.device) -> None:
        """Go on from a saved state, after `begin`. Raises `TaskError` where it is not one of a sampler like this.

        What was begun with says what shape and precision the state must have.
        """
        tensors, words = unpacked(bytes(blob))
        if words.get("plan") != self._plan.id:
            raise refused("it was made by another scheduler or with other settings")
        step = _number(words.get("step", ""), self.steps)
        expected = {"latents": self._state(), "generator": self._chance()}
        found = {name: tensors.pop(name) for name in expected if name in tensors}
        check(found, {name: (tensor.shape, tensor.dtype) for name, tensor in expected.items()})
        try:
            generator = torch.Generator()
            generator.set_state(found["generator"])
        except RuntimeError as error:
            raise refused(str(error)) from error
        self._remember(tensors, step, device)
        self._generator.set_state(found["generator"])
        self._set_state(moved(found["latents"], device))
        self.step = step

    def _guess_from(self, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
        factors = self._plan.guess(self.step - 1)
        return None if factors is None else (sample * factors[0] + output * factors[1]).to(self.dtype)

    def _chance(self) -> torch.Tensor:
        """The generator's state before this step, as bytes."""
        return self._generator.get_state()

    @abc.abstractmethod
    def _state(self) -> torch.Tensor:
        """The latents in the precision that is worked in."""

    @abc.abstractmethod
    def _set_state(self, latents: torch.Tensor) -> None: ...

    @abc.abstractmethod
    def _memory(self) -> dict[str, torch.Tensor]:
        """What the solver remembers, by name."""

    @abc.abstractmethod
    def _remember(self, tensors: Mapping[str, torch.Tensor], step: int, device: torch.device) -> None:
        """Take `_memory` of that step for one's own. Raises `TaskError` before anything is changed."""


class RecurrenceSampler(Sampler):
    """Knows the numbers of each step, and keeps the few tensors of earlier steps that these are for."""

    def __init__(self, plan: Plan, generator: torch.Generator) -> None:
        super().__init__(plan, generator)
        assert plan.recurrence is not None
        self._recurrence: Recurrence = plan.recurrence
        self._exact = torch.empty(0)
        self._shown: torch.Tensor | None = None
        self._input: torch.Tensor | None = None
        self._past: dict[Part, torch.Tensor] = {}
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        #: The noise of this step, where an attempt has drawn it, and the generator's state before that.
        self._drawn: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def latents(self) -> torch.Tensor:
        """See `Sampler`."""
        if self._shown is None:
            self._shown = self._exact.to(self.dtype)
        return self._shown

    @latents.setter
    def latents(self, latents: torch.Tensor) -> None:
        self._exact, self._shown, self._input = latents.float(), latents.to(self.dtype), None

    @property
    def exact(self) -> torch.Tensor:
        """The latents in float32."""
        return self._exact

    @property
    def now(self) -> Step:
        """The numbers of the step that comes. Raises `IndexError` at the end."""
        return self._recurrence.steps[self.step]

    @property
    def next_scale(self) -> float:
        """What the latents after this step will be multiplied with for the model to see."""
        after = self.step + 1
        return self._recurrence.steps[after].scale if after < self.steps else 1.0

    @property
    def guess(self) -> torch.Tensor | None:
        """See `Sampler`."""
        return None if self._last is None else self._guess_from(*self._last)

    def model_input(self) -> torch.Tensor:
        """See `Sampler`."""
        if self._input is None:
            scale = self.now.scale
            self._input = self.latents if scale == 1 else (self._exact * scale).to(self.dtype)
        return self._input

    def draw(self) -> torch.Tensor | None:
        """The noise of this step, float32 and on the CPU; the same one if asked again. None where there is none."""
        if self.now.draws is Draws.NOTHING:
            return None
        if self._drawn is None:
            before = self._generator.get_state()
            dtype = self.dtype if self.now.draws is Draws.MODEL else torch.float32
            self._drawn = torch.randn(self._exact.shape, generator=self._generator, dtype=dtype).float(), before
        return self._drawn[0]

    def earlier(self) -> list[tuple[torch.Tensor, float]]:
        """What this step adds beside the sample, the output and the noise of now, and how much of each."""
        return [(self._past[part], factor) for part, factor in self.now.earlier.items()]

    def moved_to(
        self,
        result: torch.Tensor,
        output: torch.Tensor,
        noise: torch.Tensor | None,
        shown: torch.Tensor | None = None,
        model_input: torch.Tensor | None = None,
    ) -> None:
        """Take the step that led here: float32 tensors, and in the model's precision what is shown and seen of them."""
        needed = self._recurrence.needed[self.step + 1]
        if needed:
            parts = self._past | {
                Part("sample", self.step): self._exact,
                Part("output", self.step): output,
                Part("result", self.step): result,
            }
            if noise is not None:
                parts[Part("noise", self.step)] = noise
            self._past = {part: parts[part] for part in needed}
        else:
            self._past = {}
        self._last = self._exact, output
        self._exact, self._shown, self._input, self._drawn = result, shown, model_input, None
        self.step += 1

    def _chance(self) -> torch.Tensor:
        return super()._chance() if self._drawn is None else self._drawn[1]

    def _state(self) -> torch.Tensor:
        return self._exact

    def _set_state(self, latents: torch.Tensor) -> None:
        self._exact, self._shown, self._input, self._drawn, self._last = latents, None, None, None, None

    def _memory(self) -> dict[str, torch.Tensor]:
        return {f"{part.kind}.{part.step}": tensor for part, tensor in self._past.items()}

    def _remember(self, tensors: Mapping[str, torch.Tensor], step: int, device: torch.device) -> None:
        names = {f"{part.kind}.{part.step}": part for part in self._recurrence.needed[step]}
        check(tensors, dict.fromkeys(names, (self._exact.shape, torch.float32)))
        self._past = {part: moved(tensors[name], device) for name, part in names.items()}


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and int(text) <= most):
        raise refused(f"it is at step {text[:20]!r} of {most}")
    return int(text)
