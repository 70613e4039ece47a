"""The complete tree of settings, and the section of a model. The docstring of a field is its documentation.

`sections` has the sections of the server. `load` reads files and the environment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from configs.links import is_link_loop
from configs.model_settings import PREDICT_PATH, Model
from configs.scaling import Scaling
from configs.section_base import LocalPath, MachineCount, Section
from configs.sections import Access, Agent, Devices, Jobs, Logging, Queue, RayCluster, Results, Server, Workers


def _model_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", value) or len(value) > 96:
        raise ValueError(
            "a model's name has up to 96 letters (a to z, A to Z), digits, dots, hyphens and underscores; slashes "
            "may separate parts, and each part begins with a letter or digit"
        )
    return value


def _without_loop(path: Path) -> Path:
    if is_link_loop(path):
        raise ValueError("must be the path of a folder, not a link that leads back to itself")
    return path


def _empty_models(value: Any) -> Any:
    return {} if value is None else value


#: Default maximum of instances.
_MAX_INSTANCES = 256
#: A model's name: safe in a URL, and of one line.
ModelName = Annotated[str, AfterValidator(_model_name)]


class Settings(Section):
    """The configuration."""

    data_dir: Annotated[LocalPath, AfterValidator(_without_loop)] = Path("data")
    """Folder of everything that the server writes: logs, sockets, state."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of log lines."""
    min_workers: MachineCount | None = Field(default=None, ge=0)
    """Replaces `scaling.min_workers` of every model, with a warning if one sets another number beside it."""
    max_workers: MachineCount | None = Field(default=None, ge=1)
    """Replaces `scaling.max_workers` of every model, with a warning if one sets another number beside it."""
    server: Server = Server.model_construct()
    logging: Logging = Logging.model_construct()
    access: Access = Access.model_construct()
    queue: Queue = Queue.model_construct()
    jobs: Jobs = Jobs.model_construct()
    results: Results = Results.model_construct()
    devices: Devices = Devices.model_construct()
    workers: Workers = Workers.model_construct()
    agent: Agent = Agent.model_construct()
    launcher: Literal["local", "ray"] = "local"
    """What starts workers: `local` on this machine, `ray` on a Ray cluster. Also `--launcher`."""
    ray: RayCluster = RayCluster.model_construct()
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
