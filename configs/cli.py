"""The command-line options that the programs share, and what they do with the configuration before they start."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from configs.load import DEFAULT_FILE, ConfigError, Tree, load
from configs.settings import Settings

#: Exit status of a program that was given a configuration or options it refuses.
EXIT_USAGE = 2


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of descriptions and shows defaults."""


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose and inspect the configuration; each one stands over the file and the environment."""
    group = parser.add_argument_group("configuration")
    group.add_argument("--config", type=Path, metavar="FILE", help=f"YAML file instead of {DEFAULT_FILE.name}")
    group.add_argument("--data-dir", metavar="DIR", help="where logs and sockets go; MUSTER_DATA_DIR sets it too")
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="how much the logs tell")
    group.add_argument("--print-config", action="store_true", help="show every setting in force as YAML, and exit")
    group.add_argument("--check-config", metavar="FILE", type=Path, help="say what is wrong with FILE, and exit")
    for action in group._group_actions:
        action.default = argparse.SUPPRESS if action.default is None else action.default


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Where the front door listens."""
    parser.add_argument("--host", default=argparse.SUPPRESS, help="address to listen on (configuration: server.host)")
    parser.add_argument("--port", type=int, default=argparse.SUPPRESS, help="port to listen on (server.port)")
    parser.add_argument(
        "--insecure",
        action="store_true",
        default=argparse.SUPPRESS,
        help="let everyone in who reaches --host, without API keys (access.insecure)",
    )


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings in force. Exits with status 0 after `--print-config` or `--check-config`, 2 on a mistake."""
    given = vars(args)
    file = given.get("check_config") or given.get("config")
    try:
        settings = load(file, _overrides(given))
    except ConfigError as error:
        print(f"configuration refused:\n{error}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
    if given.get("check_config"):
        print(f"{file}: valid; serves {', '.join(settings.models)}")
        raise SystemExit(0)
    if given.get("print_config"):
        print(to_yaml(settings), end="")
        raise SystemExit(0)
    return settings


def config_reader(args: argparse.Namespace) -> Callable[[], Settings]:
    """Reads the configuration of these arguments once more. It raises `ConfigError`."""
    given = vars(args)
    return lambda: load(given.get("config"), _overrides(given))


def to_yaml(settings: Settings) -> str:
    """Every setting as YAML that `load` reads back to equal settings."""
    tree: Tree = json.loads(settings.model_dump_json(exclude_none=True))
    return yaml.safe_dump(tree, sort_keys=False)


def _overrides(given: Tree) -> Tree:
    """The command line as a tree of settings."""
    top = {key: given[key] for key in ("data_dir", "log_level", "min_workers", "max_workers") if key in given}
    server = {key: given[key] for key in ("host", "port") if key in given}
    access = {"insecure": True} if "insecure" in given else {}
    return top | ({"server": server} if server else {}) | ({"access": access} if access else {})
