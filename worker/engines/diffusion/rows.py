"""A request inside the engine: its text, its latents, its sampler, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wire.messages import FailureKind, ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.sampling import Sampling


@dataclass(eq=False)
class DiffusionRow:
    """One picture on its way from noise.

    Tensors are replaced, never changed in place: whoever holds one keeps the state of that moment.
    """

    inputs: ImageInputs
    sampling: Sampling
    #: `(1, tokens, width)`, or with guidance `(2, tokens, width)`: negative prompt first.
    embeddings: torch.Tensor
    #: `(evaluations,)` float32 on the model's device, so that no step waits for a copy.
    timesteps: torch.Tensor
    #: `(1, C, h, w)`
    latents: torch.Tensor
    #: Best guess at the final latents, kept only where previews were asked for.
    guess: torch.Tensor | None = None
    step: int = 0
    #: Why the sampler could not go on: the row has not moved since.
    broken: TaskError | None = None

    @property
    def steps(self) -> int:
        """Forward passes in all."""
        return len(self.timesteps)

    @property
    def passes(self) -> int:
        """Rows of the forward pass that it takes: two with guidance, otherwise one."""
        return len(self.embeddings)

    def question(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Its part of a forward pass: samples, timesteps and embeddings, each with `passes` rows. Changes nothing."""
        scaled = self.sampling.scaled(self.latents, self.step)
        return scaled.expand(self.passes, -1, -1, -1), self.timesteps[self.step].expand(self.passes), self.embeddings

    def advance(self, output: torch.Tensor) -> None:
        """One step on, with the model's answer `(passes, C, h, w)`. A sampler that raises leaves the row `broken`."""
        if self.passes == 2:
            negative, positive = output.chunk(2)
            output = negative + self.inputs.guidance_scale * (positive - negative)
        try:
            latents, guess = self.sampling.advance(output, self.step, self.latents)
        except Exception as error:
            kind: FailureKind = "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else "error"
            self.broken = TaskError(kind, f"scheduler '{self.inputs.scheduler}' failed at step {self.step}: {error}")
            return
        self.latents = latents
        self.guess = guess if self.inputs.partial_images else None
        self.step += 1

    def picture(self) -> torch.Tensor:
        """The latents to show: on the way, the guess at the final ones, because the latents themselves are noisy."""
        return self.latents if self.guess is None or self.step == self.steps else self.guess
