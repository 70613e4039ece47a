"""The settings of one model. The docstring of a field is its documentation."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic.types import JsonValue

from configs.model_parts import CheckpointPath, Dtype, PartPath, Vae, VaeSection
from configs.model_sections import Batching, Defaults, Limits, Quality, Sim, WarmUp
from configs.proxy import ColdStartProxy
from configs.scaling import Scaling
from configs.section_base import Bytes, LocalPath, Section, TextPattern
from configs.text_settings import TEXT_ENGINES, TextGeneration

_PIPELINE = TextPattern(
    "[A-Za-z][A-Za-z0-9]*Pipeline", "a class of diffusers whose name ends in Pipeline, such as SanaPipeline"
)
_VARIANT = TextPattern("[A-Za-z0-9_]+", "letters, digits and underscores, such as fp16")
_REVISION = TextPattern("[A-Za-z0-9][A-Za-z0-9._/-]*", "a branch, tag or commit, such as main")

#: An import path or a Python file, and a class in it.
_USER_ENGINE = re.compile(r"[^\s:]+:[A-Za-z_][A-Za-z0-9_]*")


def _engine(value: str) -> str:
    if value not in ("diffusion", "sim", *TEXT_ENGINES) and not _USER_ENGINE.fullmatch(value):
        allowed = ", ".join(("diffusion", *TEXT_ENGINES, "sim"))
        raise ValueError(f"allowed: {allowed}, package.module:Class or path/to/file.py:Class")
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


class Model(Section):
    """A served model."""

    engine: Annotated[str, AfterValidator(_engine)] = "diffusion"
    """`diffusion`: a diffusers checkpoint. `text`: a language model of transformers. `vllm` and `openvino`: a language
    model in one of these libraries. `sim`: a simulated accelerator for load tests. `package.module:Class` or
    `path/to/file.py:Class`: an engine of your own."""
    path: CheckpointPath = ""
    """`builtin:NAME`, a local folder, a `.safetensors` file, or a hub id. Only safetensors are loaded (GGUF files by
    `openvino`). Required, but for `sim`. For an engine of your own: the folder of its module. Default: that of the
    configuration file."""
    options: dict[str, JsonValue] = Field(default={})
    """Arguments of the class of an engine of your own."""
    python: LocalPath | None = None
    """Python interpreter of the workers, such as `/path/to/venv/bin/python`, for an engine of your own and for `vllm`
    and `openvino`. Default: that of Muster."""
    pipeline: Annotated[str, _PIPELINE] | None = None
    """Pipeline class of diffusers. Default: the class that the checkpoint names."""
    controlnet: PartPath | None = None
    """Folder or hub id of the ControlNet, for a ControlNet pipeline."""
    variant: Annotated[str, _VARIANT] | None = None
    """Variant of the weight files, such as `fp16`, if the checkpoint has several."""
    revision: Annotated[str, _REVISION] | None = None
    """Branch, tag or commit of a hub id. Default: its main branch."""
    base: PartPath | None = None
    """For a single file: folder or hub id with the configuration, and with the parts that the file lacks. Default: the
    folder beside the file with its name, or the model that the file was trained from."""
    vae: VaeSection = Vae.model_construct()
    text_encoder: PartPath | None = None
    """Replaces this part of the checkpoint: a folder or a hub id."""
    text_encoder_2: PartPath | None = None
    """Replaces this part, as `text_encoder`."""
    text_encoder_3: PartPath | None = None
    """Replaces this part, as `text_encoder`."""
    transformer: PartPath | None = None
    """Replaces the denoiser: a folder, a `.safetensors` file, or a hub id."""
    unet: PartPath | None = None
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
    text: TextGeneration = TextGeneration.model_construct()
    scaling: Scaling = Scaling.model_construct()
    cold_start_proxy: ColdStartProxy | None = None
    """Another server that answers while this model has no ready worker. For models that generate images."""
    api_path: Annotated[str, AfterValidator(_api_path)] | None = None
    """Path of its own, such as `/classify`, for a model with an engine of your own. The body of a POST request is one
    input, the response its output."""
    embeddings: bool = False
    """Its engine returns the vector of a text, so that `/v1/embeddings` calls it. For an engine of your own."""
    sim: Sim = Sim.model_construct()

    @property
    def engine_name(self) -> str:
        """The engine as clients see it: without the folder of its file."""
        return self.engine.rpartition("/")[2]

    @property
    def task(self) -> Literal["image", "call", "text"]:
        """The kind of inputs that the model takes."""
        if self.engine == "sim":
            return self.sim.task
        if self.engine in TEXT_ENGINES:
            return "text"
        return "image" if self.engine == "diffusion" else "call"

    @model_validator(mode="after")
    def _only_of_its_task(self) -> Model:
        if self.task != "call" and self.api_path is not None:
            usual = "images are generated by /v1/images/generations"
            if self.task == "text":
                usual = "texts are generated by /v1/chat/completions"
            raise ValueError(f"api_path ({self.api_path}) is for models with an engine of their own; {usual}")
        if self.embeddings and self.task != "call":
            raise ValueError("embeddings is for models with an engine of their own, not for engine " + self.engine)
        if self.task != "image" and self.cold_start_proxy is not None:
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
    def _has_path(self) -> Model:
        if self.engine in TEXT_ENGINES and not self.path.strip():
            raise ValueError("path is required: a folder, a hub id such as Qwen/Qwen3-0.6B, or builtin:tiny-text")
        if self.engine == "diffusion" and not self.path.strip():
            raise ValueError(
                "path is required: a folder, a .safetensors file, a hub id such as stabilityai/sd-turbo, or "
                "builtin:digits"
            )
        return self

    @model_validator(mode="after")
    def _own_engine_only(self) -> Model:
        for name, value in (("options", self.options), ("python", self.python)):
            if value and self.task != "call" and not (name == "python" and self.engine in ("vllm", "openvino")):
                also = ", and for vllm and openvino" if name == "python" else ""
                raise ValueError(
                    f"{name} is for an engine of your own (engine: package.module:Class){also}, not {self.engine}"
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
