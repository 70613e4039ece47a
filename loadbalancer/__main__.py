"""`python -m loadbalancer`: the HTTP server and the scheduler in one process."""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import sys
from collections.abc import Sequence

import uvloop
from filelock import FileLock, Timeout
from setproctitle import setproctitle

from configs.addresses import bind_all, listen_addresses
from configs.cli import EXIT_USAGE, HelpFormatter, add_config_options, add_server_options, settings_from
from configs.log_files import rotate_own_log
from configs.logs import configure_logging
from configs.open_files import too_few_open_files
from configs.paths import internal_token, run_dir
from configs.sections import Server
from configs.streams import detach_standard_streams
from loadbalancer.access.startup_checks import (
    StartupError,
    check_exposure,
    check_resolved,
    check_tls,
    open_keys,
)
from loadbalancer.components import named_os_errors
from loadbalancer.context.request_context import log_fields
from loadbalancer.http_server.server import set_socket_limits
from loadbalancer.large_blocks import return_large_blocks
from loadbalancer.serving import serve

log = logging.getLogger("loadbalancer")

_BACKLOG = 2048

_DESCRIPTION = """\
The load balancer: answers HTTP, owns the queue and hands tasks to workers. `python -m controller` starts it by itself
together with its workers. By hand, it and a worker meet through the data directory:

    python -m loadbalancer --port 8000 --data-dir ./data
    python -m worker --model digits --data-dir ./data

On an address that other machines reach it asks for API keys (`scripts/keys`); TLS is server.tls_cert and tls_key.
Workers on other machines join at workers.listen, with keys of their own.

SIGTERM or Ctrl-C: new requests get 503, running ones may finish for server.shutdown_s. A second one ends them at once.
"""


class AddressUnavailable(Exception):
    """The server cannot listen on the address; the text says why."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadbalancer", description=_DESCRIPTION, formatter_class=HelpFormatter
    )
    add_server_options(parser)
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal. Returns the exit status: 0 stopped, 2 startup failed."""
    detach_standard_streams()
    return_large_blocks()
    # FastAPI compares each parameter with the models of pydantic's first version, if that can be imported: 1.5 MB.
    sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type]
    settings = settings_from(_parser().parse_args(argv))
    configure_logging(
        settings.log_level, as_json=settings.logging.format == "json", program="loadbalancer", context=log_fields
    )
    rotate_own_log(settings.data_dir, settings.logging)
    setproctitle("muster loadbalancer")
    if problem := too_few_open_files():
        print(f"cannot start: {problem}", file=sys.stderr)
        return EXIT_USAGE
    host, port = settings.server.host, settings.server.port
    try:
        with named_os_errors():
            keys = open_keys(settings)
            check_exposure(settings, keys.ring)
            check_tls(settings.server)
            lock = FileLock(run_dir(settings.data_dir) / "loadbalancer.lock", timeout=0)
            lock.acquire()
            token = internal_token(settings.data_dir)
        with lock, contextlib.ExitStack() as listening:
            listeners = [listening.enter_context(listener) for listener in _listen(settings.server)]
            uvloop.run(serve(settings, listeners, keys, token))
    except Timeout:
        print(f"the data directory {settings.data_dir} is already served by another balancer", file=sys.stderr)
        return EXIT_USAGE
    except AddressUnavailable as error:
        print(f"cannot listen on {host}, port {port}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except StartupError as refusal:
        print(refusal, file=sys.stderr)
        return EXIT_USAGE
    return 0


def _listen(server: Server) -> list[socket.socket]:
    """Raises `AddressUnavailable` if an address of the host is in use or not of this machine."""
    try:
        addresses = listen_addresses(server.host, server.port)
        check_resolved(server.host, addresses)
        listeners = bind_all(addresses, _BACKLOG)
    except OSError as error:
        raise AddressUnavailable(error.strerror or str(error)) from error
    for listener in listeners:
        set_socket_limits(listener, server.send_timeout_s)
    return listeners


if __name__ == "__main__":
    sys.exit(main())
