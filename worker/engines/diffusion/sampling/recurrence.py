"""`Recurrence`: a scheduler as coefficients, found by running it once.

Nearly every solver is linear: the next sample is a weighted sum of samples, model outputs and noises so far. The
weights depend on the schedule alone. The scheduler's own `step` is run on probe vectors in which every sample and
output has its own element, which yields the weights. Each step gets a fresh sample instead of the previous result, so a
sum reaches back only as far as the solver's history: one to four steps. Solvers that correct their own corrections
(UniPC, SA) have unlimited history. Its older part is a multiple of the previous result, which then replaces it.

Other elements of the vectors hold random numbers, which show whether the solver is linear. A solver that clips or
thresholds is not, and has no recurrence.
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

#: Value of the elements for samples and outputs. Noise is negligible beside it, and a power of two changes no rounding.
_UNIT = 2.0**40
#: Numbers of zero elements, which show noise alone, and of random elements, which test linearity.
_ZEROS, _TESTS = 48, 64
#: Smaller factors are rounding errors of zero.
_ZERO_TOLERANCE = 1e-9
#: Maximum number of steps that a sum may reach back.
_MAX_HISTORY = 4
#: Sums of at most this many terms are not shortened.
_SHORT_SUM = 6


class NoiseDraw(enum.Enum):
    """The dtype of the noise that a step draws."""

    NOTHING = "nothing"
    #: Noise in the model's dtype.
    MODEL = "model"
    #: Noise in float32, whatever the model's dtype.
    FLOAT32 = "float32"


class Term(NamedTuple):
    """An input or result of one scheduler step: sample, model output, noise or result.

    A result is the next step's sample, unless the sample is changed in between.
    """

    kind: TermKind
    step: int


@dataclass(frozen=True)
class RecurrenceStep:
    """The coefficients of one step, whose result is a weighted sum."""

    #: Of the sample, of the model's output, and of the drawn noise.
    sample: float
    output: float
    noise: float
    #: Of terms of earlier steps.
    earlier: dict[Term, float]
    #: Factor of the sample in the model's input.
    scale: float
    #: Factors of sample and output in the denoised estimate; None if the scheduler makes none.
    denoised: tuple[float, float] | None
    noise_draw: NoiseDraw


@dataclass(frozen=True)
class Recurrence:
    """The coefficients of all steps."""

    steps: tuple[RecurrenceStep, ...]
    #: For each step and for the end: terms of earlier steps that are still needed.
    needed: tuple[frozenset[Term], ...]


def derive_recurrence(make: Callable[[], Any], timesteps: torch.Tensor) -> Recurrence | None:
    """Return the coefficients of the scheduler that `make` returns, ready for the first of the timesteps `(n,)`.

    Return None if it is not linear or draws noise in an unknown way. Raises the errors of its `step`.
    """
    try:
        steps = list(_probe_steps(make(), timesteps, torch.float64))
    except _NotLinear:
        return None
    except Exception:  # not every scheduler accepts float64
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
    """The result is not a sum of the inputs."""


class _Probe:
    """The probe vectors of one run: `n` samples, `n` outputs, zeros and random tests."""

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        self.count = count
        self.dtype = dtype
        self.zeros = slice(2 * count, 2 * count + _ZEROS)
        self.tests = slice(2 * count + _ZEROS, 2 * count + _ZEROS + _TESTS)
        self._random = torch.Generator().manual_seed(1)
        self._vectors: dict[Term, torch.Tensor] = {}

    def fresh(self, kind: TermKind, index: int) -> torch.Tensor:
        """Return a vector `(1, 1, 1, size)` with its own unit element."""
        vector = torch.zeros(1, 1, 1, self.tests.stop, dtype=self.dtype)
        vector[..., index + (self.count if kind == "output" else 0)] = _UNIT
        tests = 30 * torch.randn(_TESTS, generator=self._random, dtype=torch.float32)
        vector[..., self.tests] = tests.to(self.dtype)
        self.record(Term(kind, index), vector)
        return vector

    def record(self, part: Term, vector: torch.Tensor) -> None:
        self._vectors[part] = vector.flatten().double()

    def factors(self, result: torch.Tensor, index: int) -> dict[Term, float]:
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
        """Return the factor of the previous result that replaces all older terms."""
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
        noise_only = flat[self.zeros]
        latest = (Term("noise", back) for back in range(index, max(index - _MAX_HISTORY - 1, -1), -1))
        noises = [part for part in latest if part in self._vectors]
        if not noises or not noise_only.any():
            return {}
        table = torch.stack([self._vectors[part][self.zeros] for part in noises], dim=1)
        factors = torch.linalg.lstsq(table, noise_only[:, None]).solution.flatten().tolist()
        return {part: factor for part, factor in zip(noises, factors, strict=True) if abs(factor) > 1e-6}

    def _is_explained(self, flat: torch.Tensor, factors: dict[Term, float]) -> bool:
        """Check the sum on the elements that it was not fitted on."""
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
    """Return the sum with its noise and the noise's dtype, by trying both dtypes."""
    if probe.dtype != torch.float64:
        raise _NotLinear  # the two dtypes would look the same
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
