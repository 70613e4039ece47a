"""Connects this process to a Ray cluster, and refuses one that anyone could use."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping

import ray
from ray._private.services import canonicalize_bootstrap_address

_CONNECT_S, _CHECK_S = 5.0, 20.0
#: Asks the cluster for anything. Exit status 0: it answers; 3: it demands another token.
_CHECK = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_get(b"session_name", b"session", timeout=5)
except AuthenticationError:
    sys.exit(3)
"""
_ANSWERED, _NO_TOKEN = 0, 3
_REMEDY = (
    "Start every node with RAY_AUTH_MODE=token and the same token (`ray get-auth-token --generate` makes one in "
    "~/.ray/auth_token), and this server too"
)


class Refused(Exception):
    """The cluster must not or cannot be used. The text says why, and what to change."""


class Unreachable(Exception):
    """The cluster does not answer now."""


def connect(address: str, namespace: str) -> None:
    """Connect. Raises `Refused` and `Unreachable`."""
    found = _resolved(address)
    own = {name: text for name, text in os.environ.items() if not name.startswith("RAY_AUTH")}
    guarded = not _is_answered(found, own | {"RAY_AUTH_MODE": "disabled"})
    if guarded and not _is_answered(found, os.environ):
        raise Refused(f"the Ray cluster at {found} demands a token, and this server has no valid one. {_REMEDY}")
    try:
        ray.init(address=found, namespace=namespace, log_to_driver=False, configure_logging=False)
    except RuntimeError as error:
        if "ersion mismatch" in str(error):
            raise Refused(_version_text(str(error))) from None
        raise Refused(f"this machine is no node of the Ray cluster at {found}: {_one_line(error)}") from None
    except (ConnectionError, ValueError, OSError) as error:
        raise Unreachable(f"the Ray cluster at {found} does not answer: {_one_line(error)}") from None
    public = sorted({node["NodeManagerAddress"] for node in ray.nodes() if not is_loopback(node["NodeManagerAddress"])})
    if public and not guarded:
        ray.shutdown()
        raise Refused(
            f"the Ray cluster at {found} has no token authentication, and listens on {', '.join(public[:3])}: whoever "
            f"reaches it can run programs on all its nodes. {_REMEDY}"
        )


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _resolved(address: str) -> str:
    """Return HOST:PORT of something that listens. Raises `Refused` and `Unreachable`."""
    if address == "auto":
        address = canonicalize_bootstrap_address("auto") or ""
        if not address:
            raise Unreachable("no Ray cluster runs on this machine; start one with `ray start`, or give its HOST:PORT")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError as error:
        raise Unreachable(f"no Ray cluster answers at {address}: {error.strerror or error}") from None
    return address


def _is_answered(address: str, environment: Mapping[str, str]) -> bool:
    """Ask the cluster, in another process, since Ray reads its variables when it is imported.

    Returns false if it refuses the token, or that there is none. Raises `Unreachable`.
    """
    command = [sys.executable, "-c", _CHECK, address]
    try:
        status = subprocess.run(  # noqa: S603 - the program above
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_CHECK_S,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        raise Unreachable(f"the Ray cluster at {address} does not answer") from None
    if status not in (_ANSWERED, _NO_TOKEN):
        raise Unreachable(f"what listens at {address} does not answer as a Ray cluster does")
    return status == _ANSWERED


def _version_text(text: str) -> str:
    """Return one sentence for Ray's own message about versions."""
    found = re.findall(r"(Ray|Python): ?([0-9][\w.]*)", text)
    if len(found) < 4:
        return f"the versions of the cluster and of this server differ: {_one_line(text)}"
    (_, ray_there), (_, python_there), (_, ray_here), (_, python_here) = found[:4]
    return (
        f"the Ray cluster has Ray {ray_there} and Python {python_there}, and the environment of this server Ray "
        f"{ray_here} and Python {python_here}: install the same Ray, and use the same minor version of Python"
    )


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
