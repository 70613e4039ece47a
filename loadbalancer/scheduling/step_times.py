"""The step times that a worker has measured, by shape and batch. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from wire.inputs import Shape
from wire.messages import Heartbeat, StepCurve


class StepTimes:
    """The step times of a heartbeat."""

    __slots__ = ("_bounds", "_curves", "_full_batches", "_heartbeat")

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._curves: dict[Shape, StepCurve] = {curve.shape: curve for curve in reversed(heartbeat.curves)}
        #: The largest measured batch within the curve's cap, by shape: tasks, seconds of a step.
        self._full_batches: dict[Shape, tuple[int, float]] = {
            shape: max((point for point in curve.points if point[0] <= curve.cap), default=(0, 0.0))
            for shape, curve in self._curves.items()
        }
        #: The shortest and the longest step of a batch that the slots allow, by shape, and for how many slots.
        self._bounds: dict[Shape, tuple[int, float, float]] = {}

    def __repr__(self) -> str:
        return f"<StepTimes of {len(self._curves)} shapes>"

    def steps_per_s(self, shape: Shape) -> float:
        """Return the task-steps per second of full batches of this shape; 0 if not measured.

        For a shape without a curve, the rate of the present batch or of the first curve is used.
        """
        if shape not in self._full_batches:
            if self._heartbeat.step_s > 0:
                return self._heartbeat.batch / self._heartbeat.step_s
            if not self._heartbeat.curves:
                return 0.0
            shape = self._heartbeat.curves[0].shape
        tasks, seconds = self._full_batches[shape]
        return tasks / seconds if seconds > 0 else 0.0

    def full_batch_step_s(self, shape: Shape) -> float:
        """Return the seconds of a step of a full batch of this shape, or of its recent steps; 0 if not measured."""
        _, seconds = self._full_batches.get(shape, (0, 0.0))
        return seconds or self._heartbeat.step_s

    def batch_step_s(self, shape: Shape, tasks: int) -> float:
        """Return the seconds of a step of a batch of `tasks`, interpolated or extrapolated; 0 if not measured."""
        curve = self._curves.get(shape)
        points = curve.points if curve else []
        if not points:
            return 0.0
        for (fewer, lower_s), (more, upper_s) in itertools.pairwise(points):
            if fewer <= tasks <= more:
                return lower_s + (upper_s - lower_s) * (tasks - fewer) / (more - fewer)
        largest, seconds = points[-1]
        return seconds * tasks / largest if tasks > largest else points[0][1]

    def bounds_s(self, shape: Shape, slots: int) -> tuple[float, float]:
        """Return the seconds of the shortest and of the longest step of 1 to `slots` tasks; 0 if not measured."""
        bounds = self._bounds.get(shape)
        if bounds is None or bounds[0] != slots:
            curve = self._curves.get(shape)
            seconds = [step_s for _, step_s in curve.points] if curve else []
            seconds.append(self.batch_step_s(shape, max(slots, 1)))
            bounds = self._bounds[shape] = slots, min(seconds), max(seconds)
        return bounds[1], bounds[2]

    @property
    def max_step_s(self) -> float:
        """Seconds of the slowest measured step; 0 if not measured."""
        slowest_s = max((seconds for _, seconds in self._full_batches.values()), default=0.0)
        return slowest_s or self._heartbeat.step_s


def full_batch_step_cost(times: Iterable[StepTimes], shape: Shape) -> float:
    """Return the seconds of one worker per forward pass of this shape in full batches; 0 if not measured."""
    rates = [rate for each in times if (rate := each.steps_per_s(shape)) > 0]
    return len(rates) / sum(rates) if rates else 0.0
