"""The engine of a user in the configuration: its reference, its paths, and its interpreter."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from configs.fields import Tree
from configs.text import clip
from configs.worker_packages import ENGINE_PACKAGES, environment_problem, needed_packages

#: Time in which an interpreter must answer.
_ANSWER_S = 20.0
_PROBE = (
    "import importlib.util, sys; print('%d.%d' % sys.version_info[:2], "
    "*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))"
)


class EngineReference(NamedTuple):
    """`package.module:Class` or `path/to/file.py:Class`."""

    #: The module or the file.
    place: str
    class_name: str

    @property
    def is_file(self) -> bool:
        return self.place.endswith(".py")


def engine_reference(text: str) -> EngineReference:
    place, _, class_name = text.rpartition(":")
    return EngineReference(place, class_name)


def with_absolute_paths(model: Tree, folder: Path) -> Tree:
    """Return a model's settings with the paths of its engine resolved: they are relative to the configuration file.

    A module is looked for in `path`, which is that folder unless it is set.
    """
    engine, changed = model.get("engine"), dict(model)
    if not isinstance(engine, str):
        return changed
    if engine in ENGINE_PACKAGES and isinstance(model.get("python"), str):
        changed["python"] = _absolute(model["python"], folder)
    if ":" not in engine:
        return changed
    place, class_name = engine_reference(engine)
    if place.endswith(".py"):
        changed["engine"] = f"{_absolute(place, folder)}:{class_name}"
    path = model.get("path") or "."
    if isinstance(path, str):
        changed["path"] = _absolute(path, folder)
    if isinstance(model.get("python"), str):
        changed["python"] = _absolute(model["python"], folder)
    return changed


def interpreter_problems(python: Path, engine: str = "", package: str = "") -> Iterator[str]:
    """Run the interpreter and yield what keeps it from running a worker with this engine.

    `package` is what it must have installed besides, or empty.
    """
    if not python.is_file():
        yield f"python: no such interpreter: {python}"
        return
    if not os.access(python, os.X_OK):
        yield f"python: {python} is not executable"
        return
    try:
        probe = subprocess.run(  # noqa: S603  # the operator names it in the configuration
            [python, "-c", _PROBE, *needed_packages(engine), *([package] if package else [])],
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=True,
        )
        version, *missing = probe.stdout.split()
    except subprocess.TimeoutExpired:
        yield f"python: {python} does not answer within {_ANSWER_S:g} s"
        return
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        text = getattr(error, "stderr", "") or str(error)
        yield f"python: {python} does not run: {clip(' '.join(text.split()), 200)}"
        return
    if package in missing:
        missing.remove(package)
        yield f"engine: no module {package} among the packages of {python}"
    problem = environment_problem(str(python), tuple(map(int, version.split("."))), missing)
    if problem:
        yield f"python: {problem}"


def _absolute(path: str, folder: Path) -> str:
    try:
        # Not resolved: the interpreter of a virtual environment is a link, and means something else than its target.
        return os.path.normpath(folder.absolute() / Path(path).expanduser())
    except RuntimeError:  # an unknown user after ~
        return path
