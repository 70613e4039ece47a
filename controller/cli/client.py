"""Selects the server of a command, and sends requests to it."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from configs.cli import path_argument
from configs.environment import CLIENT_KEY
from configs.files import describe_os_error
from configs.links import is_link_loop
from configs.load import ConfigError, load, read_yaml
from configs.paths import existing_internal_token
from configs.text import printable_lines
from controller.balancer_client import BalancerHttpClient, HttpAnswer, url_of
from wire.errors import ErrorBody

Shape = TypeVar("Shape")

#: Longer than the balancer waits for the controller.
_TIMEOUT_S = 30.0
#: Longer messages of the server are cut.
_MAX_ERROR_CHARS = 10_000


class CommandFailed(Exception):
    """The server rejected the command or cannot be reached. The text is for the user."""


class ServerClient:
    """Sends requests to one server."""

    def __init__(self, balancer: BalancerHttpClient) -> None:
        self.url = balancer.url
        self._balancer = balancer

    def request(
        self,
        method: str,
        path: str,
        shape: type[Shape],
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Shape:
        """Return the decoded answer. Raises `CommandFailed`."""
        content = None if body is None else msgspec.json.encode(body)
        try:
            answer = asyncio.run(self._balancer.request(method, path, content, query, timeout_s=_TIMEOUT_S))
        except (HTTPException, OSError) as error:
            why = "it does not answer" if isinstance(error, TimeoutError) else str(error)
            raise CommandFailed(f"no server can be reached at {self.url}: {why}") from None
        if answer.status != 200:
            raise CommandFailed(_error_message(answer))
        try:
            return msgspec.json.decode(answer.body, type=shape)
        except msgspec.MsgspecError as error:
            raise CommandFailed(f"{self.url} is not a Muster server of this version: {path}: {error}") from None


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the server."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--data-dir", type=path_argument, metavar="DIR", help="data_dir of a server on this machine; or MUSTER_DATA_DIR"
    )
    group.add_argument("--config", type=path_argument, metavar="FILE", help="configuration of a server on this machine")
    group.add_argument(
        "--url", metavar="URL", help=f"URL of any server; needs an API key of scope admin in {CLIENT_KEY}"
    )
    group.add_argument(
        "--cert", type=path_argument, metavar="FILE", help="with --url: the server's certificate, as PEM"
    )


def find_server(args: argparse.Namespace) -> ServerClient:
    """Return the selected server. Raises `CommandFailed`."""
    try:
        return ServerClient(_remote(args.url, args.cert) if args.url else _local(args.data_dir, args.config))
    except ConfigError as error:
        raise CommandFailed(f"the configuration cannot be read:\n{error}") from None
    except ValueError as error:
        raise CommandFailed(f"the server's certificate cannot be read: {error}") from None
    except OSError as error:
        raise CommandFailed(describe_os_error(error)) from None


def _remote(url: str, cert: Path | None) -> BalancerHttpClient:
    scheme, _, rest = url.rstrip("/").partition("://")
    if scheme not in ("http", "https") or not rest or set(rest) & set("?#@"):
        raise CommandFailed(f"--url {url} is not http://HOST:PORT or https://HOST:PORT")
    key = os.environ.get(CLIENT_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise CommandFailed(f"{CLIENT_KEY} has a character that no API key has")
    return BalancerHttpClient(url.rstrip("/").removesuffix("/v1"), key, cert)  # as clients of OpenAI's API have it


def _local(data_dir: Path | None, config: Path | None) -> BalancerHttpClient:
    """Find the server by the token and the configuration in its data directory."""
    folder = data_dir or load(config).data_dir
    if is_link_loop(folder):
        raise CommandFailed(f"--data-dir {folder} is a link that leads back to itself")
    folder = folder.resolve()
    token, running = existing_internal_token(folder), folder / "run" / "config.yaml"
    if token is None:
        raise CommandFailed(f"no server has run with --data-dir {folder}; give --data-dir, --config or --url")
    # The configuration in force: options such as --port may differ from the configuration file.
    written = read_yaml(running).values if running.exists() else load(config).model_dump(mode="json")
    server = written["server"]
    cert = server.get("tls_cert")
    url = url_of(server["host"], server["port"], tls=cert is not None)
    return BalancerHttpClient(url, token, Path(cert) if cert else None)


def _error_message(answer: HttpAnswer) -> str:
    try:
        return printable_lines(msgspec.json.decode(answer.body, type=ErrorBody).error.message, _MAX_ERROR_CHARS)
    except msgspec.MsgspecError:
        return f"the server answers {answer.status}"
