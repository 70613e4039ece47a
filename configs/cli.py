"""The command-line options that the programs share, and the settings that follow from them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from configs.checkpoint_files import checkpoint_problems, is_hub_id
from configs.fields import Tree
from configs.load import DEFAULT_FILE, ConfigError, load, replaced_limits
from configs.model_settings import Model
from configs.section_base import expand_home
from configs.settings import Settings
from configs.user_engine import interpreter_problems
from configs.user_engine_source import installed_package, package_problem
from configs.worker_packages import library_problem
from configs.yaml_file import dump_yaml

#: Exit status for an invalid configuration or invalid options.
EXIT_USAGE = 2


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of descriptions and shows default values."""


def path_argument(text: str) -> Path:
    """Return the path of an option, with `~` as the home folder: a shell leaves it as it is in `--config=~/x`."""
    try:
        return Path(expand_home(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the configuration. They override the file and the environment."""
    group = parser.add_argument_group("configuration")
    group.add_argument("--config", type=path_argument, metavar="FILE", help=f"YAML file instead of {DEFAULT_FILE.name}")
    group.add_argument("--data-dir", metavar="DIR", help="folder of logs, sockets and state; or MUSTER_DATA_DIR")
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="minimum level of log lines")
    group.add_argument("--print-config", action="store_true", help="print all settings as YAML, and exit")
    group.add_argument(
        "--check-config",
        metavar="FILE",
        type=path_argument,
        help="list the mistakes in FILE and in the files of its models, and exit",
    )
    for action in group._group_actions:
        action.default = argparse.SUPPRESS if action.default is None else action.default


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the HTTP server."""
    parser.add_argument("--host", default=argparse.SUPPRESS, help="address to listen on (configuration: server.host)")
    parser.add_argument("--port", type=int, default=argparse.SUPPRESS, help="port to listen on (server.port)")
    parser.add_argument(
        "--insecure",
        action="store_true",
        default=argparse.SUPPRESS,
        help="allow access without API keys on a public --host (access.insecure)",
    )


def settings_from(args: argparse.Namespace, *, needs_models: bool = True) -> Settings:
    """Return the settings, as `load` does. Exit with 0 after `--print-config` or `--check-config`, 2 on a mistake."""
    given = vars(args)
    file = given.get("check_config") or given.get("config")
    try:
        settings = load(file, _overrides(given), needs_models=needs_models)
    except ConfigError as error:
        print(f"invalid configuration:\n{error}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
    if file is not None and given.get("check_config"):
        raise SystemExit(_check_files(file, settings))
    if given.get("print_config"):
        print(to_yaml(settings), end="")
        raise SystemExit(0)
    return settings


def _check_files(file: Path, settings: Settings) -> int:
    """Print what is wrong with the models' files, or that nothing is. Return the exit status."""
    problems = {name: _model_problems(model) for name, model in settings.models.items()}
    for name, model in settings.models.items():
        if model.engine == "diffusion" and is_hub_id(model.path):
            print(f"{file}: models.{name}.path = {model.path!r}: no such folder or file here; taken for a hub id")
    for text in replaced_limits(file):
        print(text)
    if not any(problems.values()):
        print(f"{file}: valid; serves {', '.join(settings.models)}")
        return 0
    print("the configuration is valid, but these models cannot be loaded:", file=sys.stderr)
    for name, found in problems.items():
        for problem in found:
            print(f"{file}: models.{name}: {problem}", file=sys.stderr)
    return EXIT_USAGE


def _model_problems(model: Model) -> list[str]:
    package = installed_package(model.engine, model.path) if model.task == "call" else ""
    if model.python is not None:
        interpreter = list(interpreter_problems(model.python, model.engine, package))
    else:
        problem = package_problem(package, model.path) or library_problem(model.engine)
        interpreter = [problem] if problem else []
    return [*checkpoint_problems(model), *interpreter]


def config_reader(args: argparse.Namespace) -> Callable[[], Settings]:
    """Return a function that reads the same configuration again. It raises `ConfigError`."""
    given = vars(args)
    return lambda: load(given.get("config"), _overrides(given))


def limit_warnings(args: argparse.Namespace) -> list[str]:
    """Return what `replaced_limits` finds in the same configuration. Raises `ConfigError`."""
    given = vars(args)
    return replaced_limits(given.get("config"), _overrides(given))


def to_yaml(settings: Settings) -> str:
    """Return all settings as YAML, from which `load` reads equal settings."""
    tree: Tree = json.loads(settings.model_dump_json(exclude_none=True))
    return dump_yaml(tree)


def _overrides(given: Tree) -> Tree:
    names = ("data_dir", "log_level", "min_workers", "max_workers", "launcher")
    top = {key: given[key] for key in names if key in given}
    ray = {"ray": {"address": given["ray_address"]}} if "ray_address" in given else {}
    server = {key: given[key] for key in ("host", "port") if key in given}
    access = {"insecure": True} if "insecure" in given else {}
    return top | ray | ({"server": server} if server else {}) | ({"access": access} if access else {})
