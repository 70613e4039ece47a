"""Security checks at startup: API keys, exposure to other machines, TLS certificates, CURVE keys of workers.

All checks run once, before the server listens. Each raises `StartupError` if it fails.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from configs.addresses import ListenAddress
from configs.files import describe_os_error, read_regular_file
from configs.paths import curve_dir, keys_file
from configs.sections import Server
from configs.settings import Settings
from loadbalancer.access.api_keys import KeyRing, parse_ring
from loadbalancer.access.key_enforcement import EnforcedKeys, KeysRequired, check_keys_not_required, warn_of_mode
from loadbalancer.access.key_files import InvalidFile, ReloadingFile, create, exists, read
from loadbalancer.access.origin_policy import is_loopback
from loadbalancer.transport.curve_listener import CurveListener
from wire.curve import AllowedPeer, AllowedWorkers, KeyPair, new_pair

log = logging.getLogger(__name__)

#: Of a certificate with its chain, or of a key.
_MAX_PEM_BYTES = 1 << 20
#: File names in `curve_dir`.
SERVER_KEY = "server.yaml"
ALLOWED_WORKERS = "workers.yaml"


class StartupError(Exception):
    """The server must not start with this configuration. The message names the setting and the remedies."""


def open_keys(settings: Settings) -> EnforcedKeys:
    """Return the API keys that their file holds now. Raises `StartupError`."""
    configured = settings.access.keys_file
    path = keys_file(settings.data_dir, configured)
    try:
        if not exists(path):
            if configured is not None:
                raise StartupError(
                    f"access.keys_file {path} does not exist; `scripts/keys add NAME`, with the same --config, makes it"
                )
            check_keys_not_required(settings.data_dir, path)
        watched = ReloadingFile[KeyRing | None](path, parse_ring, absent=None, closed=KeyRing())
    except InvalidFile as error:
        raise StartupError(f"access.keys_file: {error}") from None
    except KeysRequired as error:
        raise StartupError(str(error)) from None
    warn_of_mode(path)
    try:
        return EnforcedKeys(watched, settings.data_dir)
    except OSError as error:
        raise StartupError(f"cannot start: {describe_os_error(error)}") from None


def check_exposure(settings: Settings, ring: KeyRing | None) -> None:
    """Raise `StartupError` if other machines could use the server without a key, and `insecure` does not allow it."""
    server, insecure = settings.server, settings.access.insecure
    if is_loopback(server.host):
        if ring is None and settings.access.hosts and not insecure:
            raise StartupError(
                f"access.hosts {', '.join(settings.access.hosts)}: a proxy forwards requests of other machines, but "
                f"there are no API keys. Make one with `scripts/keys --data-dir {settings.data_dir} add NAME`; or "
                "allow every caller with --insecure (access.insecure: true) if the proxy authenticates callers"
            )
        return
    if ring is None and not insecure:
        raise StartupError(
            f"server.host {server.host} can be reached from other machines, but there are no API keys. Make one with "
            f"`scripts/keys --data-dir {settings.data_dir} add NAME`; or listen on 127.0.0.1; or allow every caller "
            "with --insecure (access.insecure: true)"
        )
    if ring is None:
        log.warning("every machine that reaches %s can use this server: access.insecure is set", server.host)
    elif server.tls_cert is None:
        log.warning(
            "API keys are sent unencrypted to %s unless a reverse proxy adds TLS; see server.tls_cert", server.host
        )


def check_resolved(host: str, addresses: Sequence[ListenAddress]) -> None:
    """Raise `StartupError` if a host name that should be loopback resolves to another address."""
    public = [address.host for address in addresses if not is_loopback(address.host)]
    if is_loopback(host) and public:
        text = f"server.host {host} resolves to {', '.join(public)}, which is not a loopback address; use 127.0.0.1"
        raise StartupError(text)


def check_tls(server: Server) -> None:
    """Raise `StartupError` if the certificate and its key cannot be read or do not match."""
    cert, key = server.tls_cert, server.tls_key
    if cert is None or key is None:
        return
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        _readable(f"server.{name}", path)

    def no_password() -> NoReturn:
        raise StartupError(
            f"server.tls_key {key} has a password, which cannot be entered at startup; use a key without one"
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartupError(f"server.tls_key {key} does not belong to server.tls_cert {cert}") from None
        raise StartupError(
            f"server.tls_cert {cert} and server.tls_key {key} are not a certificate and key in PEM format"
        ) from None


def _readable(setting: str, path: Path) -> None:
    try:
        read_regular_file(path, _MAX_PEM_BYTES)  # OpenSSL would wait for a pipe, and read a device without end
    except OSError as error:
        raise StartupError(f"{setting} {path} cannot be read: {error.strerror}") from None


def curve_listener(settings: Settings) -> CurveListener | None:
    """Return the CURVE listener for workers on other machines; None without `workers.listen`.

    Raises `StartupError`.
    """
    if settings.workers.listen is None:
        return None
    try:
        own = load_server_keys(settings.data_dir)
        path = curve_dir(settings.data_dir) / ALLOWED_WORKERS
        watched = ReloadingFile(
            path,
            lambda tree: parse_workers(tree).peers(),
            absent=dict[str, AllowedPeer](),
            closed=dict[str, AllowedPeer](),
        )
    except OSError as error:
        raise StartupError(f"workers.listen {settings.workers.listen}: {describe_os_error(error)}") from None
    except InvalidFile as error:
        raise StartupError(f"workers.listen {settings.workers.listen}: {error}") from None
    if not watched.get(time.monotonic()):
        log.warning("no worker may join at %s yet; `scripts/keys add-worker NAME` allows one", settings.workers.listen)
    return CurveListener(settings.workers.listen, own, lambda: watched.get(time.monotonic()))


def load_server_keys(data_dir: Path) -> KeyPair:
    """Return the balancer's CURVE keys; the first call creates them. Raises `InvalidFile` and `OSError`."""
    path = curve_dir(data_dir) / SERVER_KEY
    if not exists(path):
        create(path, msgspec.to_builtins(new_pair()))  # if another process was faster, its pair is used
    try:
        return read(path, lambda tree: msgspec.convert(tree, KeyPair))
    except InvalidFile as error:
        raise InvalidFile(
            f"{error}. Restore the file, or remove it and recreate the keys of all workers with `scripts/keys`"
        ) from None


def parse_workers(tree: object) -> AllowedWorkers:
    """Return the allowed workers in a file's content. Raises `msgspec.ValidationError`."""
    return msgspec.convert({} if tree is None else tree, AllowedWorkers)
