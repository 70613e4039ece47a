"""Finding the server that a command is for, and asking it."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from configs.load import CLIENT_KEY, ConfigError, load, read_yaml
from controller.balancer_client import BalancerHttpClient, HttpAnswer, url_of
from wire.errors import ErrorBody

Shape = TypeVar("Shape")

#: Longer than the balancer waits for the controller.
_PATIENCE_S = 30.0


class CommandFailed(Exception):
    """The server did not do as asked, or there is none; the text is for the person who asked."""


class ServerClient:
    """A server to ask."""

    def __init__(self, balancer: BalancerHttpClient) -> None:
        self._balancer = balancer

    @property
    def url(self) -> str:
        """Where it is."""
        return self._balancer.url

    def ask(
        self,
        method: str,
        path: str,
        shape: type[Shape],
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Shape:
        """What it answers. Raises `CommandFailed`."""
        content = None if body is None else msgspec.json.encode(body)
        try:
            answer = asyncio.run(self._balancer.ask(method, path, content, query, within_s=_PATIENCE_S))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = "it does not answer" if isinstance(error, TimeoutError) else str(error)
            raise CommandFailed(f"no server can be reached at {self.url}: {why}") from None
        if answer.status != 200:
            raise CommandFailed(_refusal(answer))
        try:
            return msgspec.json.decode(answer.body, type=shape)
        except msgspec.MsgspecError as error:
            raise CommandFailed(f"{self.url} is no Muster of this version: {path}: {error}") from None


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which server is meant."""
    group = parser.add_argument_group("which server")
    group.add_argument("--data-dir", type=Path, metavar="DIR", help="of a server on this machine; MUSTER_DATA_DIR too")
    group.add_argument("--config", type=Path, metavar="FILE", help="its configuration, which names its data_dir")
    group.add_argument(
        "--url", metavar="URL", help=f"of a server anywhere, with an API key of scope admin in {CLIENT_KEY}"
    )
    group.add_argument("--cert", type=Path, metavar="FILE", help="with --url: the certificate that it shows, as PEM")


def find_server(args: argparse.Namespace) -> ServerClient:
    """The server that is meant. Raises `CommandFailed`."""
    try:
        return ServerClient(_elsewhere(args.url, args.cert) if args.url else _here(args.data_dir, args.config))
    except ConfigError as error:
        raise CommandFailed(f"the configuration cannot be read:\n{error}") from None
    except ValueError as error:
        raise CommandFailed(f"the server's certificate cannot be read: {error}") from None
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}") from None


def _elsewhere(url: str, cert: Path | None) -> BalancerHttpClient:
    if not url.startswith(("http://", "https://")):
        raise CommandFailed(f"--url {url} is not http://HOST:PORT or https://HOST:PORT")
    return BalancerHttpClient(url.rstrip("/"), os.environ.get(CLIENT_KEY, ""), cert)


def _here(data_dir: Path | None, config: Path | None) -> BalancerHttpClient:
    """The server of this data directory, by what it left there for its own programs."""
    folder = (data_dir or load(config).data_dir).resolve()
    token, running = folder / "run" / "internal.token", folder / "run" / "config.yaml"
    if not token.exists():
        raise CommandFailed(
            f"no server has run with --data-dir {folder}; name its directory, its --config, or its --url"
        )
    # What it runs with: --port and the like may have changed what is in its configuration file.
    written = read_yaml(running).values if running.exists() else load(config).model_dump(mode="json")
    server = written["server"]
    cert = server.get("tls_cert")
    url = url_of(server["host"], server["port"], tls=cert is not None)
    return BalancerHttpClient(url, token.read_text(encoding="ascii").strip(), Path(cert) if cert else None)


def _refusal(answer: HttpAnswer) -> str:
    try:
        return msgspec.json.decode(answer.body, type=ErrorBody).error.message
    except msgspec.MsgspecError:
        return f"the server answers {answer.status}"
