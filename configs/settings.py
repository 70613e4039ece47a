"""Everything that can be set, as one tree of pydantic models. The docstring of a field is its documentation.

What can be set for a model stands here, what can be set for the server in `sections`.

Nothing here reads a file or the environment: `load` does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from configs.proxy import ColdStartProxy
from configs.samplers import canonical_sampler, sampler_names
from configs.scaling import Scaling
from configs.sections import Access, Bytes, Devices, Jobs, PositiveSeconds, Queue, Seconds, Section, Server, Workers


def _known_scheduler(value: str) -> str:
    known = canonical_sampler(value)
    if known is None:
        raise ValueError(f"no such scheduler; allowed: {', '.join(sampler_names())}")
    return known


def _size(value: str) -> str:
    if not re.fullmatch(r"[1-9]\d{1,4}x[1-9]\d{1,4}", value):
        raise ValueError("must be WIDTHxHEIGHT in pixels, such as 512x512")
    if any(int(side) % 8 for side in value.split("x")):
        raise ValueError("width and height must be multiples of 8")
    return value


class Batching(Section):
    """How a worker fills its batch."""

    mode: Literal["step", "grouped"] = "step"
    """`step`: requests join and leave between denoising steps. `grouped`: whole-request batches, for comparison."""
    window_s: Seconds = 0.3
    """`grouped` only: how long the first request of a batch waits for others."""
    min_gain: float = Field(default=0.05, ge=0, lt=1)
    """A larger batch must bring more images per second by this fraction to be used (`max_batch_size: auto`)."""
    max_step_s: PositiveSeconds | None = None
    """No batch whose step takes longer than this: bounds how long a newcomer waits to join. Default: no bound."""
    checkpoint_every: Annotated[int, Field(ge=1)] | Literal["auto", "never"] = "auto"
    """Steps between two checkpoints of a running task, which its worker's death sets it back to; `auto`: about 2 s."""


class WarmUp(Section):
    """What a worker does before it takes its first request."""

    sizes: tuple[Annotated[str, AfterValidator(_size)], ...] = ()
    """Picture sizes to measure beside the default one. Others are learnt from the steps that they take."""
    measure_s: Seconds = 10.0
    """Most seconds to spend on measuring steps of 1 to 32 tasks, per size; the result is kept in `data_dir`."""


class Defaults(Section):
    """What a request gets that does not say otherwise."""

    size: Annotated[str, AfterValidator(_size)] = "512x512"
    """Width x height in pixels."""
    steps: int = Field(default=25, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(default=7.5, ge=0)
    """Classifier-free guidance; at 1 or below there is none, which halves the work."""
    scheduler: Annotated[str, AfterValidator(_known_scheduler)] = "default"
    """Sampler by name; `default` is the checkpoint's own."""
    strength: float = Field(default=0.8, gt=0, le=1)
    """With a source picture: how far from it, 1 ignoring it."""


class Limits(Section):
    """What one request may ask of this model."""

    max_steps: int = Field(default=150, ge=1, le=1000)
    """Most denoising steps."""
    max_pixels: int = Field(default=1024 * 1024, ge=64)
    """Most pixels, width x height."""
    min_side: int = Field(default=64, ge=8)
    """Shortest side in pixels."""
    max_guidance_scale: float = Field(default=50.0, ge=1)
    """Strongest guidance."""
    max_source_pixels: int = Field(default=25_000_000, ge=64)
    """Most pixels of an uploaded picture, before it is scaled to the size of the image."""
    max_loras: int = Field(default=4, ge=0)
    """Most adapters of one request."""
    max_lora_scale: float = Field(default=4.0, gt=0)
    """Strongest scale of an adapter, of either sign."""


class Sim(Section):
    """The simulated accelerator: a step of b tasks takes t0_s + t1_s * b."""

    t0_s: Seconds = 0.008
    """Seconds of a step, whatever the batch."""
    t1_s: Seconds = 0.003
    """Seconds of a step for each task."""
    load_s: Seconds = 0.5
    """Seconds that reading the weights takes, which a spare has done already."""
    activate_s: Seconds = 0.0
    """Seconds that bringing them onto the device takes."""
    fail_prompt: str = "sim:fail"
    """A prompt that holds this fails, alone."""
    crash_prompt: str = "sim:crash"
    """A prompt that holds this kills the worker process."""
    nan_prompt: str = "sim:nan"
    """A prompt that holds this ends in a picture that is none."""
    flag_prompt: str = "sim:flag"
    """A prompt that holds this makes a picture that the safety checker objects to, as `safety_checker` says."""
    stuck_prompt: str = "sim:stuck"
    """A prompt that holds this makes a step that never ends."""
    device_prompt: str = "sim:device"
    """A prompt that holds this makes the device unusable."""
    memory_tasks: int | None = Field(default=None, ge=0)
    """A step of more tasks than this is out of memory."""


class Model(Section):
    """One served model."""

    engine: Literal["diffusion", "sim"] = "diffusion"
    """`diffusion` runs a diffusers checkpoint; `sim` simulates an accelerator for load tests."""
    path: str = "builtin:digits"
    """`builtin:NAME`, a local folder, a single `.safetensors` file, or a hub id. Only safetensors are loaded."""
    pipeline: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9]*Pipeline$")
    """Class of diffusers to run the checkpoint with; default: the one that the checkpoint names."""
    controlnet: str | None = None
    """Folder or hub id of a ControlNet to load beside it, for a ControlNet pipeline."""
    variant: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_]+$")
    """Variant of the weight files, such as `fp16`, where the checkpoint has several."""
    loras: Path | None = None
    """Folder of LoRA adapters (`NAME.safetensors`) that requests may name."""
    max_loras: int = Field(default=8, ge=1)
    """Most adapters that a worker keeps in memory; the least recently used gives way."""
    safety_checker: Literal["off", "flag", "refuse"] = "off"
    """Where the checkpoint ships one: `flag` says in the answer what it objects to, `refuse` answers 400 instead."""
    compile: Literal["off", "regional", "full", "graphs"] = "off"
    """GPU only: `torch.compile` of the denoiser's repeated blocks or of all of it, or CUDA graphs without compiling."""
    reproducible: bool = False
    """Every request gets equal bytes for an equal seed under any load, at the price of smaller shared batches."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto` is the checkpoint family's usual half precision on a GPU and float32 on a CPU."""
    gpu_memory: Bytes | Literal["auto"] = "auto"
    """Memory that one worker needs on its GPU, such as 9.5GiB. `auto` is what its workers were seen to hold, kept in
    `data_dir`; until one has run, a whole GPU."""
    max_batch_size: Annotated[int, Field(ge=1, le=512)] | Literal["auto"] = "auto"
    """Most tasks in one worker's running batch; `auto` measures where more would gain nothing, up to 32."""
    batching: Batching = Batching()
    warm_up: WarmUp = WarmUp()
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    scaling: Scaling = Scaling()
    cold_start_proxy: ColdStartProxy | None = None
    """Another server that answers while this model has no worker that is ready."""
    sim: Sim = Sim()

    @model_validator(mode="after")
    def _defaults_within_limits(self) -> Model:
        if self.defaults.steps > self.limits.max_steps:
            raise ValueError(
                f"defaults.steps ({self.defaults.steps}) exceeds limits.max_steps ({self.limits.max_steps})"
            )
        width, height = map(int, self.defaults.size.split("x"))
        if width * height > self.limits.max_pixels or min(width, height) < self.limits.min_side:
            raise ValueError(f"defaults.size ({self.defaults.size}) is outside limits.max_pixels and limits.min_side")
        return self

    @model_validator(mode="after")
    def _adapters_are_not_compiled(self) -> Model:
        if self.loras is not None and self.compile in ("regional", "full"):
            raise ValueError(
                f"compile ({self.compile}) does not go with loras: each set of adapters would be compiled anew; "
                "allowed: off, graphs"
            )
        return self


ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        env_prefix="MUSTER_",
        env_nested_delimiter="__",
    )

    data_dir: Path = Path("data")
    """Logs, sockets and everything else that the server writes."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much the logs tell."""
    min_workers: int | None = Field(default=None, ge=0)
    """Stands in for `scaling.min_workers` of every model."""
    max_workers: int | None = Field(default=None, ge=1)
    """Stands in for `scaling.max_workers` of every model."""
    server: Server = Server()
    access: Access = Access()
    queue: Queue = Queue()
    jobs: Jobs = Jobs()
    devices: Devices = Devices()
    workers: Workers = Workers()
    models: dict[ModelName, Model] = Field(min_length=1)
    """The served models by name. The first is the default of a request that names none."""

    def scaling(self, model: str) -> Scaling:
        """The model's scaling with `min_workers` and `max_workers` of the top level applied."""
        own = self.models[model].scaling
        least = self.min_workers if self.min_workers is not None else own.min_workers
        most = self.max_workers if self.max_workers is not None else own.max_workers
        if self.min_workers is not None and self.max_workers is None and isinstance(most, int):
            most = max(most, least)
        if self.max_workers is not None and self.min_workers is None:
            least = min(least, self.max_workers)
        first = own.initial_workers
        if first is not None:
            first = max(min(first, most), least) if isinstance(most, int) else max(first, least)
        return own.model_copy(update={"min_workers": least, "max_workers": most, "initial_workers": first})

    @model_validator(mode="after")
    def _a_request_fits_the_queue(self) -> Settings:
        if self.server.max_n > self.queue.max_tasks:
            raise ValueError(
                f"server.max_n ({self.server.max_n}) must not exceed queue.max_tasks ({self.queue.max_tasks}), "
                "or a request for so many images could never be accepted"
            )
        return self

    @model_validator(mode="after")
    def _min_within_max(self) -> Settings:
        if self.min_workers is not None and self.max_workers is not None and self.min_workers > self.max_workers:
            raise ValueError(f"min_workers ({self.min_workers}) must not exceed max_workers ({self.max_workers})")
        return self
