"""What a scheduler does, as numbers: found out by running it once, not by knowing its mathematics.

Nearly every solver is linear: the next sample is a sum of the samples, model outputs and noises so far, each times a
number that depends on nothing but the schedule. So its own `step` is run on vectors in which every sample and every
output has an element of its own; what comes out are the numbers. As each step is given a fresh sample, and not the
result of the one before, a sum reaches back only as far as the solver's own memory: one to four steps. A solver that
corrects its own corrections (UniPC, SA) remembers everything; what it remembers of long ago is a multiple of its
result before, which then takes the place of all that.

Other elements of the same vectors hold random numbers. They tell whether the solver is linear at all; one that clips
or looks at percentiles is not, and has no recurrence.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from worker.engines.diffusion.sampling.schedulers import denoised_of, step_options

TermKind = Literal["sample", "output", "noise", "result"]
_NOW: tuple[TermKind, ...] = ("sample", "output", "noise")

#: Size of the elements that stand for a sample or an output: so large that noise beside them is as good as none, and
#: a power of two, so that it changes no rounding.
_UNIT = 2.0**40
#: Elements that stay zero, to show the noise alone, and elements that show whether the solver is linear.
_ZEROS, _TESTS = 48, 64
#: Factors below this are what rounding leaves of zero.
_ZERO_TOLERANCE = 1e-9
#: Steps that a sum may reach back.
_MAX_HISTORY = 4
#: Parts of a sum that needs no shorter one.
_SHORT_SUM = 6


class NoiseDraw(enum.Enum):
    """What a step draws from the generator."""

    NOTHING = "nothing"
    #: Noise in the precision of the model.
    MODEL = "model"
    #: Noise in float32, whatever the model's precision.
    FLOAT32 = "float32"


class Term(NamedTuple):
    """The sample before a `step`, the model's output at it, the noise drawn in it, or its result.

    The result is the next step's sample unless somebody changes that in between.
    """

    kind: TermKind
    step: int


@dataclass(frozen=True)
class RecurrenceStep:
    """One step: the next sample is a sum, and these are the factors in it."""

    #: Of the sample, of the model's output, and of the noise that is drawn.
    sample: float
    output: float
    noise: float
    #: Of parts of the steps before.
    earlier: dict[Term, float]
    #: What the sample is multiplied with for the model to see.
    scale: float
    #: Factors of sample and output in the guess at the final sample, where the scheduler makes one.
    denoised: tuple[float, float] | None
    noise_draw: NoiseDraw


@dataclass(frozen=True)
class Recurrence:
    """A whole run."""

    steps: tuple[RecurrenceStep, ...]
    #: Parts of earlier steps that are needed at a step or later, for each step and for the end.
    needed: tuple[frozenset[Term], ...]


def derive_recurrence(make: Callable[[], Any], timesteps: torch.Tensor) -> Recurrence | None:
    """The numbers of a scheduler that `make` makes, ready for the first of the timesteps `(n,)`.

    None where it is not linear or its noise is not understood. Raises what its `step` raises.
    """
    try:
        steps = list(_probe_steps(make(), timesteps, torch.float64))
    except _NotLinear:
        return None
    except Exception:  # not every scheduler takes float64
        try:
            steps = list(_probe_steps(make(), timesteps, torch.float32))
        except _NotLinear:
            return None
    needed = [frozenset[Term]()]
    for index in reversed(range(len(steps))):
        terms = needed[0] | steps[index].earlier.keys()
        needed.insert(0, frozenset(part for part in terms if part.step < index))
    return Recurrence(tuple(steps), tuple(needed))


class _NotLinear(Exception):
    """What came out is no sum of what went in."""


class _Probe:
    """The vectors of one run: `n` samples, `n` outputs, zeros, tests."""

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        self.count = count
        self.dtype = dtype
        self.zeros = slice(2 * count, 2 * count + _ZEROS)
        self.tests = slice(2 * count + _ZEROS, 2 * count + _ZEROS + _TESTS)
        self._random = torch.Generator().manual_seed(1)
        self._vectors: dict[Term, torch.Tensor] = {}

    def fresh(self, kind: TermKind, index: int) -> torch.Tensor:
        """A vector `(1, 1, 1, size)` that no other part shares its element with."""
        vector = torch.zeros(1, 1, 1, self.tests.stop, dtype=self.dtype)
        vector[..., index + (self.count if kind == "output" else 0)] = _UNIT
        tests = 30 * torch.randn(_TESTS, generator=self._random, dtype=torch.float32)
        vector[..., self.tests] = tests.to(self.dtype)
        self.record(Term(kind, index), vector)
        return vector

    def record(self, part: Term, vector: torch.Tensor) -> None:
        self._vectors[part] = vector.flatten().double()

    def factors(self, result: torch.Tensor, index: int) -> dict[Term, float]:
        """The sum that the result is. Raises `_NotLinear` if it is none."""
        flat = result.flatten().double()
        if not torch.isfinite(flat).all():
            raise _NotLinear
        sums: list[dict[Term, float]] = []
        for long_ago in (0, _MAX_HISTORY // 2, _MAX_HISTORY):
            factors = self._parts(flat, index, self._older_history(flat, index, long_ago) if long_ago else {})
            if all(part.step >= index - _MAX_HISTORY for part in factors) and self._is_explained(flat, factors):
                sums.append(factors)
            if sums and len(sums[0]) <= _SHORT_SUM:
                break
        if not sums:
            raise _NotLinear
        return min(sums, key=len)

    def _older_history(self, flat: torch.Tensor, index: int, memory: int) -> dict[Term, float]:
        """How much of the result before it takes to stand for all that is longer ago."""
        last, old = Term("result", index - 1), max(index - memory, 0)
        if last not in self._vectors:
            return {}
        terms, before = (
            torch.cat([vector[:old], vector[self.count : self.count + old]]) / _UNIT
            for vector in (flat, self._vectors[last])
        )
        squared = float(before @ before)
        return {last: float(terms @ before) / squared} if squared else {}

    def _parts(self, flat: torch.Tensor, index: int, start: dict[Term, float]) -> dict[Term, float]:
        found = dict(start)
        for part, factor in start.items():
            flat = flat - factor * self._vectors[part]
        found |= self._noise_factors(flat, index)
        units = flat[: 2 * self.count] / _UNIT
        for place in (units.abs() > _ZERO_TOLERANCE).nonzero().flatten().tolist():
            part = Term("sample", place) if place < self.count else Term("output", place - self.count)
            found[part] = float(units[place])
        return found

    def _noise_factors(self, flat: torch.Tensor, index: int) -> dict[Term, float]:
        """How much of each noise is in the elements to which nothing else was added."""
        noise_only = flat[self.zeros]
        latest = (Term("noise", back) for back in range(index, max(index - _MAX_HISTORY - 1, -1), -1))
        noises = [part for part in latest if part in self._vectors]
        if not noises or not noise_only.any():
            return {}
        table = torch.stack([self._vectors[part][self.zeros] for part in noises], dim=1)
        factors = torch.linalg.lstsq(table, noise_only[:, None]).solution.flatten().tolist()
        return {part: factor for part, factor in zip(noises, factors, strict=True) if abs(factor) > 1e-6}

    def _is_explained(self, flat: torch.Tensor, factors: dict[Term, float]) -> bool:
        """Whether the sum also gives the elements that it was not found from."""
        checked = flat[self.zeros.start :]
        parts = [factor * self._vectors[part][self.zeros.start :] for part, factor in factors.items()]
        table = torch.stack([torch.zeros_like(checked), *parts])
        return bool(((checked - table.sum(0)).abs() <= 2e-5 * table.abs().sum(0) + 1e-6).all())


def _probe_steps(scheduler: Any, timesteps: torch.Tensor, dtype: torch.dtype) -> Iterator[RecurrenceStep]:
    probe = _Probe(len(timesteps), dtype)
    generator = torch.Generator().manual_seed(0)
    options = step_options(scheduler, generator)
    for index, timestep in enumerate(timesteps):
        sample, output = probe.fresh("sample", index), probe.fresh("output", index)
        scale = _scale(probe, scheduler, sample, timestep, index)
        before = generator.get_state()
        step_output = scheduler.step(output, timestep, sample, **options)
        if torch.equal(before, generator.get_state()):
            factors, noise_draw = probe.factors(step_output.prev_sample, index), NoiseDraw.NOTHING
        else:
            factors, noise_draw = _with_noise(probe, step_output.prev_sample, index, before, generator.get_state())
        probe.record(Term("result", index), step_output.prev_sample)
        of_sample, of_output, of_noise = (factors.pop(Term(kind, index), 0.0) for kind in _NOW)
        yield RecurrenceStep(
            of_sample, of_output, of_noise, factors, scale, _guess(probe, denoised_of(step_output), index), noise_draw
        )


def _scale(probe: _Probe, scheduler: Any, sample: torch.Tensor, timestep: torch.Tensor, index: int) -> float:
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    factors = probe.factors(scheduler.scale_model_input(sample, timestep), index)
    scale = factors.pop(Term("sample", index), 0.0)
    if factors:
        raise _NotLinear
    return scale


def _with_noise(
    probe: _Probe, result: torch.Tensor, index: int, before: torch.Tensor, after: torch.Tensor
) -> tuple[dict[Term, float], NoiseDraw]:
    """The sum with its noise, and in which precision that was drawn: one of two explains what came out."""
    if probe.dtype != torch.float64:
        raise _NotLinear  # the two would look the same
    for noise_draw, dtype in ((NoiseDraw.MODEL, torch.float64), (NoiseDraw.FLOAT32, torch.float32)):
        generator = torch.Generator()
        generator.set_state(before)
        probe.record(Term("noise", index), torch.randn(result.shape, generator=generator, dtype=dtype))
        if not torch.equal(generator.get_state(), after):
            continue
        with contextlib.suppress(_NotLinear):
            return probe.factors(result, index), noise_draw
    raise _NotLinear


def _guess(probe: _Probe, denoised: torch.Tensor | None, index: int) -> tuple[float, float] | None:
    if denoised is None:
        return None
    try:
        factors = probe.factors(denoised, index)
    except _NotLinear:
        return None
    weights = factors.pop(Term("sample", index), 0.0), factors.pop(Term("output", index), 0.0)
    return None if factors else weights
