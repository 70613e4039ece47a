"""What the server's settings name on another machine: only what that machine allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.model_settings import Model
from configs.settings import Settings
from wire.agents import ModelSettings
from worker.agent.model_paths import LocalModels, local_models


def received(**models: dict[str, Any]) -> ModelSettings:
    return ModelSettings("digest", '{"heartbeat_s": 0.5}', {name: json.dumps(tree) for name, tree in models.items()})


def resolve(folder: Path, tree: dict[str, Any], **allowed: Any) -> LocalModels:
    agent = {"model_folders": [str(folder / "models")], **allowed}
    own = Settings.model_validate({"data_dir": str(folder), "models": {"x": {"engine": "sim"}}, "agent": agent})
    return local_models(own, received(m=tree), folder / "weights")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models" / "sdxl").mkdir(parents=True)
    (tmp_path / "models" / "engine.py").write_text("class Echo: ...")
    (tmp_path / "elsewhere" / "sdxl").mkdir(parents=True)
    (tmp_path / "weights" / "m" / "path" / "turbo").mkdir(parents=True)
    return tmp_path


def test_folder_is_found_by_its_last_part(folder: Path) -> None:
    found = resolve(folder, {"path": "/srv/of/the/server/sdxl", "vae": {"path": "/srv/sdxl"}})
    model = found.settings.models["m"]
    assert (model.path, model.vae.path) == (str(folder / "models" / "sdxl"),) * 2
    assert found.present == {"m"}
    assert found.settings.workers.heartbeat_s == 0.5


@pytest.mark.parametrize("inside", [True, False])
def test_whole_path_counts_inside_allowed_folders_only(folder: Path, inside: bool) -> None:
    path = folder / ("models" if inside else "elsewhere") / "sdxl"
    assert resolve(folder, {"path": str(path)}).settings.models["m"].path == str(folder / "models" / "sdxl")
    (folder / "models" / "sdxl").rmdir()
    assert resolve(folder, {"path": str(folder / "elsewhere" / "sdxl")}).absent == ("m",)


@pytest.mark.parametrize("path", ["builtin:digits", "stabilityai/sd-turbo"])
def test_builtin_models_and_hub_ids_stay(folder: Path, path: str) -> None:
    found = resolve(folder, {"path": path})
    assert found.settings.models["m"].path == path
    assert ("m" in found.present) == path.startswith("builtin:")


def test_fetched_files_count_once_they_are_complete(folder: Path) -> None:
    assert resolve(folder, {"path": "/srv/turbo"}).absent == ("m",)
    (folder / "weights" / "m" / "complete").touch()
    fetched = resolve(folder, {"path": "/srv/turbo"}).settings.models["m"].path
    assert fetched == str(folder / "weights" / "m" / "path" / "turbo")


@pytest.mark.parametrize(
    ("tree", "allowed", "reason"),
    [
        ({"path": "/srv/other"}, {}, "path is /srv/other on the server, and there is nothing of this name"),
        ({"path": "/srv/.."}, {}, "there is nothing of this name"),
        ({"engine": "/srv/other.py:Echo", "path": "/srv"}, {}, "no file of this name is in agent.model_folders"),
        ({"engine": "os:system", "path": "/srv"}, {}, "which agent.engines of this machine does not list"),
        (
            {"engine": "/srv/engine.py:Echo", "path": "/srv", "python": "/usr/bin/python3"},
            {"interpreters": ["/opt/venv/bin/python"]},
            "python is /usr/bin/python3, which agent.interpreters of this machine does not list",
        ),
        ({"path": "builtin:digits", "unheard_of": 1}, {}, "is not valid on this machine"),
        ({"path": ["builtin:digits"]}, {}, "is not valid on this machine"),
        ([], {}, "is not valid on this machine"),
    ],
)
def test_what_the_machine_does_not_allow_is_refused(
    folder: Path, tree: dict[str, Any], allowed: dict[str, Any], reason: str
) -> None:
    found = resolve(folder, tree, **allowed)
    assert found.settings.models == {}
    assert reason in found.unusable["m"]


@pytest.mark.parametrize("name", ["..", "../x", "/etc", ".hidden", "a//b", ""])
def test_name_that_is_no_models_name_is_refused(folder: Path, name: str) -> None:
    own = Settings.model_validate({"data_dir": str(folder), "models": {"x": {"engine": "sim"}}})
    found = local_models(own, received(**{name: {"path": "/srv/x"}}), folder / "weights")
    assert found.absent == ()
    assert "is not valid on this machine" in found.unusable[name]


def test_engines_of_users_run_if_the_machine_has_them(folder: Path) -> None:
    file = folder / "models" / "engine.py"
    found: Model = resolve(folder, {"engine": "/srv/engine.py:Echo", "path": "/srv"}).settings.models["m"]
    assert (found.engine, found.path) == (f"{file}:Echo", str(file.parent))
    listed = resolve(folder, {"engine": "my.package:Echo", "path": "/srv/sdxl"}, engines=["my.package:Echo"])
    assert listed.settings.models["m"].path == str(folder / "models" / "sdxl")
