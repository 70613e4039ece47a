"""Engines of users in the configuration: paths, and what is wrong without importing anything."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from configs.cli import settings_from, to_yaml
from configs.load import ConfigError, load
from configs.model_settings import Model
from configs.user_engine import interpreter_problems
from configs.user_engine_source import engine_problems, installed_package, package_problem
from configs.worker_packages import WORKER_PACKAGES, environment_problem

SOURCE = """
from elsewhere import Imported
class Digits:
    def predict(self, items): return items
Alias = Digits
class Assigned:
    __init__ = make
class Inherited(Digits):
    pass
class Options:
    def __init__(self, path, size=1, *, name, scale=2.0): ...
class AnyOptions:
    def __init__(self, size=1, **others): ...
@decorated
class Wrapped(Digits):
    def __init__(self): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "digits.py").write_text(SOURCE)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("class InPackage: ...")
    (tmp_path / "broken.py").write_text("class Digits:\n  def (")
    (tmp_path / "empty.py").write_text("x = 1")
    return tmp_path


def write(folder: Path, model: str) -> Path:
    file = folder / "muster.yaml"
    file.write_text(f"models:\n  digits: {{{model}}}\n")
    return file


def test_file_is_relative_to_the_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    settings = load(write(folder, "engine: engines/digits.py:Digits, python: env/bin/python, options: {a: 1, b: [x]}"))
    model = settings.models["digits"]
    assert (model.task, model.engine_name) == ("call", "digits.py:Digits")
    assert (model.engine, model.path) == (f"{folder}/engines/digits.py:Digits", str(folder))
    assert (model.python, model.options) == (folder / "env/bin/python", {"a": 1, "b": ["x"]})
    again = folder / "again"
    again.mkdir()
    copy = again / "copy.yaml"
    copy.write_text(to_yaml(settings))
    assert load(copy) == settings


def test_module_is_looked_for_in_path(folder: Path) -> None:
    assert load(write(folder, "engine: package:InPackage")).models["digits"].path == str(folder)
    model = load(write(folder, "engine: digits:Digits, path: engines")).models["digits"]
    assert model.path == str(folder / "engines")
    assert list(engine_problems(model.engine, model.path)) == []


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ("engines/digits.py:Digits", ""),
        ("engines/digits.py:Alias", ""),
        ("engines/digits.py:Imported", ""),
        ("package:InPackage", ""),
        ("installed.somewhere:Class", ""),
        ("engines/other.py:Digits", "engine: no such file: {folder}/engines/other.py"),
        (
            "engines/digits.py:Numbers",
            (
                "engine: {folder}/engines/digits.py has no class Numbers; "
                "it defines Digits, Assigned, Inherited, Options, AnyOptions, Wrapped"
            ),
        ),
        ("empty:Numbers", "engine: {folder}/empty.py has no class Numbers; it defines no class"),
        ("broken.py:Digits", "engine: {folder}/broken.py line 2: invalid syntax"),
    ],
)
def test_problem_names_file_and_class(folder: Path, engine: str, problem: str) -> None:
    model = load(write(folder, f'engine: "{engine}"')).models["digits"]
    assert "; ".join(engine_problems(model.engine, model.path)) == problem.format(folder=folder)


@pytest.mark.parametrize(
    ("name", "options", "problems"),
    [
        ("Digits", [], []),
        ("Digits", ["anything"], ["options.anything: unknown option; Digits takes none"]),
        ("Assigned", ["anything"], []),
        ("Inherited", ["anything"], []),
        ("Options", ["path", "name"], []),
        ("Options", ["path", "size", "name", "scale"], []),
        (
            "Options",
            ["path", "name", "sclae"],
            ["options.sclae: unknown option; did you mean `scale`? Options takes path, size, name, scale"],
        ),
        (
            "Options",
            ["x"],
            [
                "options.x: unknown option; Options takes path, size, name, scale",
                "options.path: is required; Options takes path, size, name, scale",
                "options.name: is required; Options takes path, size, name, scale",
            ],
        ),
        ("AnyOptions", ["anything"], []),
        ("Wrapped", ["anything"], []),
    ],
)
def test_options_are_compared_with_the_source(folder: Path, name: str, options: list[str], problems: list[str]) -> None:
    assert list(engine_problems(f"{folder}/engines/digits.py:{name}", "", options)) == problems


@pytest.mark.parametrize(
    ("engine", "package"),
    [
        ("engines/digits.py:Digits", ""),
        ("package:InPackage", ""),
        ("package.deeper:Class", ""),
        ("empty:Class", ""),
        ("installed.somewhere:Class", "installed"),
    ],
)
def test_package_that_must_be_installed(folder: Path, engine: str, package: str) -> None:
    assert installed_package(engine, str(folder)) == package


def test_package_that_is_not_installed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert package_problem("", "/f") == package_problem("pydantic", "/f") == ""
    assert package_problem("no_such_package", "/f").startswith("engine: no module no_such_package in /f or in the")
    [problem] = interpreter_problems(Path(sys.executable), package="no_such_package")
    assert problem == f"engine: no module no_such_package among the packages of {sys.executable}"
    file = write(folder, "engine: no_such_package:Class")
    with pytest.raises(SystemExit):
        settings_from(Namespace(check_config=file))
    assert f"{file}: models.digits: engine: no module no_such_package in {folder}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            "engine: nothing",
            "allowed: diffusion, text, vllm, openvino, sim, package.module:Class or path/to/file.py:Class",
        ),
        ("engine: a:1", "allowed: diffusion, text, vllm, openvino, sim, package.module:Class"),
        ("engine: sim, options: {a: 1}", "options is for an engine of your own"),
        ("engine: sim, python: python3", "python is for an engine of your own"),
        ("engine: 'a:B', batching: {batch_wait_ms: -1}", "greater than or equal to 0"),
    ],
)
def test_wrong_values_are_explained(folder: Path, model: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(write(folder, model))


def test_interpreter_is_run(tmp_path: Path) -> None:
    assert list(interpreter_problems(Path(sys.executable))) == []
    assert list(interpreter_problems(tmp_path / "none")) == [f"python: no such interpreter: {tmp_path}/none"]
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no python >&2\nexit 3\n")
    assert list(interpreter_problems(script)) == [f"python: {script} is not executable"]
    script.chmod(0o755)
    assert list(interpreter_problems(script)) == [f"python: {script} does not run: no python"]
    script.write_text("#!/bin/sh\necho 3.12 zmq yaml\n")
    assert list(interpreter_problems(script)) == [
        f"python: {script} lacks packages that a worker needs; install them: {script} -m pip install pyzmq pyyaml"
    ]


def test_interpreter_of_a_library_is_asked_for_it(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\nshift 2\necho 3.12 "$@"\n')
    script.chmod(0o755)
    [problem] = interpreter_problems(script, "vllm")
    assert problem.endswith("-m pip install msgspec psutil pydantic pyyaml pyzmq vllm transformers llguidance")


@pytest.mark.parametrize("engine", ["vllm", "openvino", "engine.py:Engine"])
def test_interpreter_is_relative_to_the_configuration(folder: Path, engine: str) -> None:
    settings = load(write(folder, f"engine: '{engine}', path: weights, python: env/bin/python"))
    assert settings.models["digits"].python == folder / "env" / "bin" / "python"


@pytest.mark.parametrize(("version", "fits"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)])
def test_versions_of_python(version: tuple[int, int], fits: bool) -> None:
    assert (environment_problem("python", version, []) == "") == fits


def test_packages_of_a_worker_are_its_dependencies() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert all(f'"{package}>=' in project for package in WORKER_PACKAGES.values())


def test_task_of_a_model() -> None:
    assert [Model(engine=engine, path="x").task for engine in ("diffusion", "sim", "a:B")] == ["image", "image", "call"]
