"""What stands between the server and the world when it starts: keys, certificates, and the refusal to go without.

Everything here happens once, before anything listens. What is wrong raises `StartupError`.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from configs.addresses import ListenAddress
from configs.files import describe_os_error
from configs.paths import curve_dir, keys_file
from configs.sections import Server
from configs.settings import Settings
from loadbalancer.access.api_keys import KeyRing, parse_ring
from loadbalancer.access.key_enforcement import EnforcedKeys, KeysRequired, check_keys_not_required, warn_of_mode
from loadbalancer.access.key_files import InvalidFile, ReloadingFile, create, exists, read
from loadbalancer.access.origin_policy import is_loopback
from loadbalancer.transport.curve_listener import CurveListener
from wire.curve import AllowedWorkers, KeyPair, new_pair

log = logging.getLogger(__name__)

#: In `curve_dir`.
SERVER_KEY = "server.yaml"
ALLOWED_WORKERS = "workers.yaml"


class StartupError(Exception):
    """The server must not start like this; the text names the setting and the ways out."""


def open_keys(settings: Settings) -> Callable[[float], KeyRing | None]:
    """The API keys at a monotonic time; None while there is no file of them. Raises `StartupError`."""
    configured = settings.access.keys_file
    path = keys_file(settings.data_dir, configured)
    try:
        if not exists(path):
            if configured is not None:
                raise StartupError(
                    f"access.keys_file {path} is not there; `scripts/keys add NAME`, with the same --config, makes it"
                )
            check_keys_not_required(settings.data_dir, path)
        watched = ReloadingFile[KeyRing | None](path, parse_ring, absent=None, closed=KeyRing())
    except InvalidFile as error:
        raise StartupError(f"access.keys_file: {error}") from None
    except KeysRequired as error:
        raise StartupError(str(error)) from None
    warn_of_mode(path)
    try:
        enforced = EnforcedKeys(watched, settings.data_dir)
    except OSError as error:
        raise StartupError(f"cannot start: {describe_os_error(error)}") from None
    return enforced.get


def check_exposure(settings: Settings, ring: KeyRing | None) -> None:
    """Raises `StartupError` where strangers could use the server."""
    server, insecure = settings.server, settings.access.insecure
    if is_loopback(server.host):
        if ring is None and settings.access.hosts and not insecure:
            raise StartupError(
                f"access.hosts {', '.join(settings.access.hosts)}: a proxy passes requests of other machines on, but "
                f"there are no API keys. Make one with `scripts/keys --data-dir {settings.data_dir} add NAME`; or let "
                "everyone in with --insecure (access.insecure: true), as for a proxy that checks who asks"
            )
        return
    if ring is None and not insecure:
        raise StartupError(
            f"server.host {server.host} can be reached from other machines, but there are no API keys. Make one with "
            f"`scripts/keys --data-dir {settings.data_dir} add NAME`; or listen on 127.0.0.1; or let everyone in with "
            "--insecure (access.insecure: true)"
        )
    if ring is None:
        log.warning("everyone who reaches %s may use this server: access.insecure is set", server.host)
    elif server.tls_cert is None:
        log.warning(
            "API keys travel unencrypted to %s unless a proxy in front adds TLS; see server.tls_cert", server.host
        )


def check_resolved(host: str, addresses: Sequence[ListenAddress]) -> None:
    """Raises `StartupError` if a name that is taken for this machine's own has an address that others reach."""
    public = [address.host for address in addresses if not is_loopback(address.host)]
    if is_loopback(host) and public:
        raise StartupError(f"server.host {host} is {', '.join(public)} here, not a loopback address; use 127.0.0.1")


def check_tls(server: Server) -> None:
    """Raises `StartupError` where the certificate's files cannot be used together."""
    cert, key = server.tls_cert, server.tls_key
    if cert is None or key is None:
        return
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        _readable(f"server.{name}", path)

    def no_password() -> NoReturn:
        raise StartupError(
            f"server.tls_key {key} has a password, which cannot be entered at start-up; use a key without one"
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartupError(f"server.tls_key {key} does not belong to server.tls_cert {cert}") from None
        raise StartupError(
            f"server.tls_cert {cert} and server.tls_key {key} are no certificate and key in PEM"
        ) from None


def _readable(setting: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise StartupError(f"{setting} {path} cannot be read: {error.strerror}") from None


def curve_listener(settings: Settings) -> CurveListener | None:
    """The door for workers on other machines; None where `workers.listen` asks for none. Raises `StartupError`."""
    if settings.workers.listen is None:
        return None
    try:
        own = load_server_keys(settings.data_dir)
        path = curve_dir(settings.data_dir) / ALLOWED_WORKERS
        watched = ReloadingFile(
            path, lambda tree: parse_workers(tree).names(), absent=dict[str, str](), closed=dict[str, str]()
        )
    except OSError as error:
        raise StartupError(f"workers.listen {settings.workers.listen}: {describe_os_error(error)}") from None
    except InvalidFile as error:
        raise StartupError(f"workers.listen {settings.workers.listen}: {error}") from None
    if not watched.get(time.monotonic()):
        log.warning("no worker may join at %s yet; `scripts/keys add-worker NAME` allows one", settings.workers.listen)
    return CurveListener(settings.workers.listen, own, lambda: watched.get(time.monotonic()))


def load_server_keys(data_dir: Path) -> KeyPair:
    """The balancer's own CURVE keys, made when they are first asked for. Raises `InvalidFile` and `OSError`."""
    path = curve_dir(data_dir) / SERVER_KEY
    if not exists(path):
        create(path, msgspec.to_builtins(new_pair()))  # unless another process was faster: all use the same pair
    try:
        return read(path, lambda tree: msgspec.convert(tree, KeyPair))
    except InvalidFile as error:
        raise InvalidFile(
            f"{error}. Restore the file; or remove it, and make the keys of all workers again with `scripts/keys`"
        ) from None


def parse_workers(tree: object) -> AllowedWorkers:
    """The workers in a file's content. Raises `msgspec.ValidationError`."""
    return msgspec.convert({} if tree is None else tree, AllowedWorkers)
