"""The complete tree of settings, and the section of a model. The docstring of a field is its documentation.

`sections` has the sections of the server. `load` reads files and the environment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic.types import JsonValue

from configs.model_parts import CheckpointPath, Dtype, Vae, VaeSection
from configs.proxy import ColdStartProxy
from configs.samplers import canonical_sampler, sampler_names
from configs.scaling import Scaling
from configs.sections import (
    Access,
    Bytes,
    Devices,
    Jobs,
    LocalPath,
    Logging,
    MachineCount,
    PositiveSeconds,
    Queue,
    Results,
    Seconds,
    Section,
    Server,
    Workers,
)


def _known_scheduler(value: str) -> str:
    known = canonical_sampler(value)
    if known is None:
        raise ValueError(f"unknown scheduler; allowed: {', '.join(sampler_names())}")
    return known


def _size(value: str) -> str:
    if not re.fullmatch(r"[1-9]\d{1,4}x[1-9]\d{1,4}", value):
        raise ValueError("must be WIDTHxHEIGHT in pixels, such as 512x512")
    if any(int(side) % 8 for side in value.split("x")):
        raise ValueError("width and height must be multiples of 8")
    return value


#: An import path or a Python file, and a class in it.
_USER_ENGINE = re.compile(r"[^\s:]+:[A-Za-z_][A-Za-z0-9_]*")


def _engine(value: str) -> str:
    if value not in ("diffusion", "sim") and not _USER_ENGINE.fullmatch(value):
        raise ValueError("allowed: diffusion, sim, package.module:Class or path/to/file.py:Class")
    return value


#: What a model's own path is made of: what needs no encoding in a URL.
_API_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
#: The minimal API for images, and the usual path of other servers' models: a model may have it where none generates
#: images.
PREDICT_PATH = "/predict"
#: Paths of the server. They are also reserved with more after them.
RESERVED_PATHS = (
    "/docs",
    "/health",
    "/healthz",
    "/internal",
    "/livez",
    "/metrics",
    "/openapi.json",
    PREDICT_PATH,
    "/readyz",
    "/v1",
    "/v2",
)


def _api_path(value: str) -> str:
    if not _API_PATH.fullmatch(value) or len(value) > 200 or {".", ".."} & set(value.split("/")):
        raise ValueError("must be a path such as /classify, of letters, digits, '.', '_', '~', '-' and '/'")
    reserved = next((path for path in RESERVED_PATHS if value == path or value.startswith(f"{path}/")), None)
    if reserved is not None and value != PREDICT_PATH:
        raise ValueError(f"{reserved} is a path of the server; choose another one")
    return value


def _off(value: Any) -> Any:
    """`off` is false to a reader of YAML 1.1, and some programs write it so."""
    return "off" if value is False else value


def _model_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", value) or len(value) > 96:
        raise ValueError(
            "a model's name has up to 96 letters (a to z, A to Z), digits, dots, hyphens and underscores; slashes "
            "may separate parts, and each part begins with a letter or digit"
        )
    return value


def _empty_models(value: Any) -> Any:
    return {} if value is None else value


class Batching(Section):
    """Batching in a worker."""

    mode: Literal["step", "grouped"] = "step"
    """`step`: requests join and leave a batch between denoising steps. `grouped`: a batch runs to its end."""
    window_s: Seconds = 0.3
    """`grouped` only: time that the first request of a batch waits for others."""
    min_gain: float = Field(default=0.05, ge=0, lt=1)
    """`max_batch_size: auto`: minimum gain in images per second, as a fraction, for which a larger batch is used."""
    max_step_s: PositiveSeconds | None = None
    """Maximum duration of a step, which limits how long a new request waits to join the batch. Default: no limit."""
    batch_wait_ms: Annotated[float, Field(ge=0, le=60_000)] | None = None
    """Time that an incomplete batch waits for more calls while nothing runs, in milliseconds. Default: what the
    engine's class says, or 0."""
    checkpoint_every: Annotated[int, Field(ge=1)] | Literal["auto", "never"] = "auto"
    """Steps between two checkpoints of a task, from which it resumes after its worker died. `auto`: about 2 s."""


class WarmUp(Section):
    """Measurements of a worker before its first request."""

    sizes: tuple[Annotated[str, AfterValidator(_size)], ...] = ()
    """Image sizes to measure in addition to the default one. Other sizes are measured while they run."""
    measure_s: Seconds = 10.0
    """Time limit per size for measuring steps of 1 to 32 tasks. Results are stored in `data_dir`.

    Batches that it leaves out are measured while they run."""
    prepare_s: Seconds = 300.0
    """With `compile`: time limit for compiling and recording steps of all batches before the first request, beside
    `measure_s`. Shapes that it leaves out, and sizes not listed in `sizes`, run uncompiled."""


class Defaults(Section):
    """Default values of request parameters. Unset ones are those of the pipeline's class and checkpoint."""

    size: Annotated[str, AfterValidator(_size)] | None = None
    """WIDTHxHEIGHT in pixels."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Number of denoising steps."""
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    """Classifier-free guidance. At 1 or below it is off, which halves the work."""
    scheduler: Annotated[str, AfterValidator(_known_scheduler)] = "default"
    """Name of the sampler. `default`: the checkpoint's own."""
    strength: float = Field(default=0.8, gt=0, le=1)
    """With a source image: how far the result may differ from it; 1 ignores it."""

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height of `size`, which must be set."""
        assert self.size is not None
        width, height = map(int, self.size.split("x"))
        return width, height


class Quality(Section):
    """Settings of requests that ask for a quality. Unset ones are the model's defaults."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Number of denoising steps."""
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    """Classifier-free guidance."""
    scheduler: Annotated[str, AfterValidator(_known_scheduler)] | None = None
    """Name of the sampler."""


class Limits(Section):
    """Limits of request parameters."""

    max_steps: int = Field(default=150, ge=1, le=1000)
    """Maximum number of denoising steps."""
    max_pixels: int = Field(default=1024 * 1024, ge=64)
    """Maximum number of pixels, width x height."""
    min_side: int = Field(default=64, ge=8)
    """Minimum length of a side in pixels."""
    max_guidance_scale: float = Field(default=50.0, ge=1)
    """Maximum guidance scale."""
    max_source_pixels: int = Field(default=25_000_000, ge=64)
    """Maximum number of pixels of an uploaded image, before it is scaled."""
    max_source_side: int = Field(default=16_384, ge=8)
    """Maximum length of a side of an uploaded image in pixels, before it is scaled."""
    max_loras: int = Field(default=4, ge=0)
    """Maximum number of LoRA adapters per request."""
    max_lora_scale: float = Field(default=4.0, gt=0)
    """Maximum absolute scale of an adapter."""


class Sim(Section):
    """A simulated accelerator, on which a step of b tasks takes t0_s + t1_s * b seconds."""

    task: Literal["image", "call"] = "image"
    """`image`: generate images. `call`: return the values of each call as they are, after one step."""
    t0_s: Seconds = 0.008
    """Duration of a step independent of the batch size."""
    t1_s: Seconds = 0.003
    """Additional duration of a step per task."""
    load_s: Seconds = 0.5
    """Duration of reading the weights. A standby worker has done this already."""
    activate_s: Seconds = 0.0
    """Duration of copying the weights to the device."""
    fail_prompt: str = "sim:fail"
    """A prompt with this text fails, without effect on other tasks."""
    crash_prompt: str = "sim:crash"
    """A prompt with this text kills the worker process."""
    nan_prompt: str = "sim:nan"
    """A prompt with this text produces an invalid image (NaN)."""
    flag_prompt: str = "sim:flag"
    """A prompt with this text produces an image that the safety checker flags (see `safety_checker`)."""
    stuck_prompt: str = "sim:stuck"
    """A prompt with this text causes a step that never completes."""
    device_prompt: str = "sim:device"
    """A prompt with this text makes the device unusable."""
    memory_tasks: int | None = Field(default=None, ge=0)
    """A step with more tasks runs out of memory. Default: never."""


class Model(Section):
    """A served model."""

    engine: Annotated[str, AfterValidator(_engine)] = "diffusion"
    """`diffusion`: a diffusers checkpoint. `sim`: a simulated accelerator for load tests. `package.module:Class` or
    `path/to/file.py:Class`: an engine of your own."""
    path: CheckpointPath = ""
    """`builtin:NAME`, a local folder, a `.safetensors` file, or a hub id. Only safetensors are loaded. Required for
    `diffusion`. For an engine of your own: the folder of its module. Default: that of the configuration file."""
    options: dict[str, JsonValue] = Field(default={})
    """Arguments of the class of an engine of your own."""
    python: LocalPath | None = None
    """Python interpreter of the workers, such as `/path/to/venv/bin/python`, for an engine of your own. Default: that
    of Muster."""
    pipeline: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9]*Pipeline$")
    """Pipeline class of diffusers. Default: the class that the checkpoint names."""
    controlnet: CheckpointPath | None = None
    """Folder or hub id of the ControlNet, for a ControlNet pipeline."""
    variant: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_]+$")
    """Variant of the weight files, such as `fp16`, if the checkpoint has several."""
    revision: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    """Branch, tag or commit of a hub id. Default: its main branch."""
    base: CheckpointPath | None = None
    """For a single file: folder or hub id with the configuration, and with the parts that the file lacks. Default: the
    folder beside the file with its name, or the model that the file was trained from."""
    vae: VaeSection = Vae.model_construct()
    text_encoder: CheckpointPath | None = None
    """Replaces this part of the checkpoint: a folder or a hub id."""
    text_encoder_2: CheckpointPath | None = None
    """Replaces this part, as `text_encoder`."""
    text_encoder_3: CheckpointPath | None = None
    """Replaces this part, as `text_encoder`."""
    transformer: CheckpointPath | None = None
    """Replaces the denoiser: a folder, a `.safetensors` file, or a hub id."""
    unet: CheckpointPath | None = None
    """Replaces the denoiser of a pipeline with a UNet, as `transformer`."""
    loras: LocalPath | None = None
    """Folder of LoRA adapters (`NAME.safetensors`) that requests may use."""
    max_loras: int = Field(default=8, ge=1)
    """Maximum number of adapters in a worker's memory; the least recently used one is evicted."""
    safety_checker: Annotated[Literal["off", "flag", "refuse"], BeforeValidator(_off)] = "off"
    """For checkpoints with a safety checker. `flag`: the answer marks flagged images. `refuse`: the answer is 400."""
    compile: Annotated[Literal["off", "regional", "full", "graphs"], BeforeValidator(_off)] = "off"
    """GPU only: `torch.compile` of the denoiser's repeated blocks (`regional`) or all of it (`full`); CUDA graphs."""
    reproducible: bool = False
    """Equal requests with equal seeds get equal bytes under any load. Fewer requests can then share a batch."""
    dtype: Dtype = "auto"
    """`auto`: the usual half precision of the checkpoint family on a GPU, float32 on a CPU."""
    gpu_memory: Bytes | Literal["auto"] = "auto"
    """GPU memory that one worker needs, such as 9.5GiB. `auto`: the measured need, stored in `data_dir`; until it is
    measured, a full GPU."""
    max_batch_size: Annotated[int, Field(ge=1, le=512)] | Literal["auto"] = "auto"
    """Maximum number of tasks in a worker's batch. `auto`: the measured size without further gain, up to 32."""
    batching: Batching = Batching.model_construct()
    warm_up: WarmUp = WarmUp.model_construct()
    defaults: Defaults = Defaults.model_construct()
    quality: dict[Literal["low", "medium", "high", "standard", "hd"], Quality] = Field(default={})
    """What the values of the request's `quality` mean. Without an entry, `standard` and `medium` mean the same, and
    `hd` and `high`. A value that means nothing here has no effect."""
    limits: Limits = Limits.model_construct()
    scaling: Scaling = Scaling.model_construct()
    cold_start_proxy: ColdStartProxy | None = None
    """Another server that answers while this model has no ready worker. For models that generate images."""
    api_path: Annotated[str, AfterValidator(_api_path)] | None = None
    """Path of its own, such as `/classify`, for a model with an engine of your own. The body of a POST request is one
    input, the response its output."""
    sim: Sim = Sim.model_construct()

    @property
    def engine_name(self) -> str:
        """The engine as clients see it: without the folder of its file."""
        return self.engine.rpartition("/")[2]

    @property
    def task(self) -> Literal["image", "call"]:
        """The kind of inputs that the model takes."""
        if self.engine == "sim":
            return self.sim.task
        return "image" if self.engine == "diffusion" else "call"

    @model_validator(mode="after")
    def _only_of_its_task(self) -> Model:
        if self.task == "image" and self.api_path is not None:
            raise ValueError(
                f"api_path ({self.api_path}) is for models with an engine of their own; images are generated by "
                "/v1/images/generations"
            )
        if self.task == "call" and self.cold_start_proxy is not None:
            raise ValueError(f"cold_start_proxy is for models that generate images, not for engine {self.engine}")
        return self

    @property
    def replaced_parts(self) -> dict[str, str]:
        """Return the paths of the parts that replace the checkpoint's own, by name."""
        paths = {
            "vae": self.vae.path,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
            "text_encoder_3": self.text_encoder_3,
            "transformer": self.transformer,
            "unet": self.unet,
        }
        return {name: path for name, path in paths.items() if path is not None}

    @model_validator(mode="after")
    def _diffusion_has_path(self) -> Model:
        if self.engine == "diffusion" and not self.path.strip():
            raise ValueError(
                "path is required: a folder, a .safetensors file, a hub id such as stabilityai/sd-turbo, or "
                "builtin:digits"
            )
        return self

    @model_validator(mode="after")
    def _own_engine_only(self) -> Model:
        for name, value in (("options", self.options), ("python", self.python)):
            if value and self.task != "call":
                raise ValueError(
                    f"{name} is for an engine of your own (engine: package.module:Class), not {self.engine}"
                )
        return self

    @model_validator(mode="after")
    def _defaults_within_limits(self) -> Model:
        named = {"defaults": self.defaults.steps}
        named |= {f"quality.{name}": preset.steps for name, preset in self.quality.items()}
        for name, steps in named.items():
            if steps is not None and steps > self.limits.max_steps:
                raise ValueError(f"{name}.steps ({steps}) exceeds limits.max_steps ({self.limits.max_steps})")
        if self.defaults.size is not None:
            width, height = self.defaults.sides
            if width * height > self.limits.max_pixels or min(width, height) < self.limits.min_side:
                raise ValueError(
                    f"defaults.size ({self.defaults.size}) is outside limits.max_pixels and limits.min_side"
                )
        return self

    @model_validator(mode="after")
    def _compile_excludes_loras(self) -> Model:
        if self.loras is not None and self.compile in ("regional", "full"):
            raise ValueError(
                f"compile ({self.compile}) cannot be combined with loras: each set of adapters would be "
                "compiled again; allowed: off, graphs"
            )
        return self


#: Default maximum of instances.
_MAX_INSTANCES = 256
#: A model's name: safe in a URL, and of one line.
ModelName = Annotated[str, AfterValidator(_model_name)]


class Settings(Section):
    """The configuration."""

    data_dir: LocalPath = Path("data")
    """Folder of everything that the server writes: logs, sockets, state."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of log lines."""
    min_workers: MachineCount | None = Field(default=None, ge=0)
    """Replaces `scaling.min_workers` of every model."""
    max_workers: MachineCount | None = Field(default=None, ge=1)
    """Replaces `scaling.max_workers` of every model."""
    server: Server = Server.model_construct()
    logging: Logging = Logging.model_construct()
    access: Access = Access.model_construct()
    queue: Queue = Queue.model_construct()
    jobs: Jobs = Jobs.model_construct()
    results: Results = Results.model_construct()
    devices: Devices = Devices.model_construct()
    workers: Workers = Workers.model_construct()
    models: Annotated[dict[ModelName, Model], BeforeValidator(_empty_models)] = Field(min_length=1)
    """The served models by name. The first one is the default of requests without a model."""

    def scaling(self, model: str) -> Scaling:
        """Return the model's scaling settings, with `min_workers` and `max_workers` of the top level applied."""
        own = self.models[model].scaling
        minimum = self.min_workers if self.min_workers is not None else own.min_workers
        maximum = self.max_workers if self.max_workers is not None else own.max_workers
        if self.min_workers is not None and self.max_workers is None and isinstance(maximum, int):
            maximum = max(maximum, minimum)
        if self.max_workers is not None and self.min_workers is None:
            minimum = min(minimum, self.max_workers)
        initial = own.initial_workers
        if initial is not None:
            initial = max(min(initial, maximum), minimum) if isinstance(maximum, int) else max(initial, minimum)
        return own.model_copy(update={"min_workers": minimum, "max_workers": maximum, "initial_workers": initial})

    @model_validator(mode="after")
    def _max_n_fits_queue(self) -> Settings:
        if self.server.max_n > self.queue.max_tasks:
            raise ValueError(
                f"server.max_n ({self.server.max_n}) must not exceed queue.max_tasks ({self.queue.max_tasks}), "
                "or a request for that many images could never be accepted"
            )
        return self

    @property
    def api_paths(self) -> dict[str, str]:
        """The models' own paths, and the model of each."""
        return {model.api_path: name for name, model in self.models.items() if model.api_path is not None}

    @property
    def max_instances(self) -> int:
        """Maximum number of instances of one request."""
        return self.server.max_instances or min(_MAX_INSTANCES, self.queue.max_tasks)

    @model_validator(mode="after")
    def _max_instances_fits_queue(self) -> Settings:
        if self.max_instances > self.queue.max_tasks:
            raise ValueError(
                f"server.max_instances ({self.max_instances}) must not exceed queue.max_tasks "
                f"({self.queue.max_tasks}), or a request with that many could never be accepted"
            )
        return self

    @model_validator(mode="after")
    def _api_paths_differ(self) -> Settings:
        owners: dict[str, str] = {}
        for name, model in self.models.items():
            if model.api_path is None:
                continue
            images = next((other for other, each in self.models.items() if each.task == "image"), None)
            if model.api_path == PREDICT_PATH and images is not None:
                raise ValueError(
                    f"models.{name}.api_path ({PREDICT_PATH}) is the path of the server for images, and "
                    f"models.{images} generates images; choose another one"
                )
            other = owners.setdefault(model.api_path, name)
            if other != name:
                raise ValueError(f"models.{name}.api_path ({model.api_path}) is also models.{other}.api_path")
        return self

    @model_validator(mode="after")
    def _min_within_max(self) -> Settings:
        if self.min_workers is not None and self.max_workers is not None and self.min_workers > self.max_workers:
            raise ValueError(f"min_workers ({self.min_workers}) must not exceed max_workers ({self.max_workers})")
        return self
