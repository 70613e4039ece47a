"""A file that describes simulated hardware: what a step or a token takes, and machines with their GPUs.

image: {step_s: 0.05, pixels: 1048576}
text: {prefill_tokens_per_s: 8000, decode_step_s: {1: 0.02, 8: 0.022, 32: 0.03}}
machines:
a: {gpus: 4}
b: {gpus: 4, mean_life_s: 86400, repair_s: 300}
switches:
rack: {machines: [a, b], mean_life_s: 864000, repair_s: 120}
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from configs.load import section_problems
from configs.section_base import PositiveSeconds, Section
from configs.yaml_file import InvalidYaml, read_yaml_file
from controller.simulator.request_work import RequestCosts

#: Tasks in the largest batch that a curve may have.
_MAX_BATCH = 4096
_MAX_GPUS = 10_000


class InvalidHardware(ValueError):
    """The file does not describe hardware; the text names the key, its value and what is allowed."""


class ImageCosts(Section):
    """Work of an image."""

    step_s: PositiveSeconds = RequestCosts().step_s
    """Duration of a step of one image."""
    pixels: Annotated[int, Field(ge=1)] | None = None
    """Pixels of the image whose step takes `step_s`. Default: all sizes take the same."""


class TextCosts(Section):
    """Work of a text: its prompt is computed at once, its output in one decode step per token."""

    prefill_tokens_per_s: float = Field(gt=0)
    """Tokens of prompts that a worker computes in a second."""
    decode_step_s: dict[Annotated[int, Field(ge=1, le=_MAX_BATCH)], PositiveSeconds]
    """Duration of a decode step by the number of texts in it: for 1, for the largest batch, and for some between."""

    @field_validator("decode_step_s")
    @classmethod
    def _is_a_curve(cls, curve: dict[int, float]) -> dict[int, float]:
        if 1 not in curve:
            raise ValueError("the duration for a batch of 1 is needed")
        for batch, larger in pairwise(sorted(curve)):
            if curve[larger] < curve[batch]:
                raise ValueError(f"a step of {larger} texts takes less time than one of {batch}")
        return curve

    def slowdowns(self) -> tuple[float, ...]:
        """Return how much longer a step takes with 1, 2, ... texts than with one; linear between measurements."""
        sizes = sorted(self.decode_step_s)
        return tuple(self._step_s(batch, sizes) / self.decode_step_s[1] for batch in range(1, sizes[-1] + 1))

    def _step_s(self, batch: int, sizes: list[int]) -> float:
        right = bisect_right(sizes, batch)
        low = sizes[right - 1]
        if low == batch:
            return self.decode_step_s[batch]
        high = sizes[right]
        share = (batch - low) / (high - low)
        return (1 - share) * self.decode_step_s[low] + share * self.decode_step_s[high]


class MachineHardware(Section):
    """A machine of the cluster. If it fails, all its workers end at once."""

    gpus: int = Field(ge=1, le=_MAX_GPUS)
    """Number of its GPUs."""
    mean_life_s: PositiveSeconds | None = None
    """Mean time between failures. Default: it does not fail."""
    repair_s: PositiveSeconds = 300.0
    """Time from a failure until workers can load there again."""


class SwitchHardware(Section):
    """A network switch. While it fails, its machines cannot be reached, and their workers return afterwards."""

    machines: tuple[str, ...] = Field(min_length=1)
    """Names of its machines."""
    mean_life_s: PositiveSeconds | None = None
    """Mean time between failures. Default: it does not fail."""
    repair_s: PositiveSeconds = 120.0
    """Duration of a failure."""


class Hardware(Section):
    """Simulated hardware."""

    image: ImageCosts = ImageCosts.model_construct()
    text: TextCosts | None = None
    machines: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], MachineHardware] = Field(default={})
    switches: dict[str, SwitchHardware] = Field(default={})

    @model_validator(mode="after")
    def _check_switches(self) -> Self:
        for name, switch in self.switches.items():
            for machine in switch.machines:
                if machine not in self.machines:
                    raise ValueError(f"switches.{name}.machines: there is no machine {machine!r}")
        return self

    def costs(self, request_s: float) -> RequestCosts:
        """Return the work of requests; `request_s` is that of requests without a size."""
        costs = RequestCosts(self.image.step_s, request_s=request_s, pixels=self.image.pixels)
        if self.text is None:
            return costs
        return costs._replace(token_s=self.text.decode_step_s[1], prompt_token_s=1 / self.text.prefill_tokens_per_s)


def read_hardware(file: Path) -> Hardware:
    """Read a YAML file. Raises `InvalidHardware`."""
    try:
        values = read_yaml_file(file).value
    except InvalidYaml as error:
        raise InvalidHardware(f"{file}: {error}") from None
    except OSError as error:
        raise InvalidHardware(f"{file} cannot be read: {error.strerror or error}") from None
    try:
        return Hardware.model_validate({} if values is None else values)
    except ValidationError as error:
        raise InvalidHardware("\n".join(section_problems(error, values, Hardware, str(file)))) from None
