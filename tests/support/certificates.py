"""Certificates of a minute's life for tests, made by the `openssl` program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program here")


class Certificate(NamedTuple):
    """PEM files."""

    cert: Path
    key: Path


def self_signed(folder: Path, name: str, *, password: str = "") -> Certificate:
    """A new certificate for 127.0.0.1 and its key."""
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", f"/CN={name}"]
    secret = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    # The usages are what a strict client asks of a certificate that is its own issuer.
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    files = ["-out", str(made.cert), "-keyout", str(made.key)]
    subprocess.run(["openssl", "req", "-x509", *options, *secret, *names, *files], check=True, capture_output=True)
    return made
