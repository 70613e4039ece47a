"""Fetches the libraries of the page from the npm registry, and checks that their files are the expected ones.

`python -m scripts.vendor` writes the files that `vendor.json` lists. `--update` writes their hashes into it as well,
after a version was changed there by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "loadbalancer" / "page" / "static" / "vendor"
MANIFEST = FOLDER / "vendor.json"
_TIMEOUT_S = 120


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.vendor", description=__doc__)
    parser.add_argument("--update", action="store_true", help="take the files as they are, and note their hashes")
    update = parser.parse_args(argv).update
    if shutil.which("npm") is None:
        print("npm is needed; it comes with Node.js", file=sys.stderr)
        return 2
    packages = json.loads(MANIFEST.read_text())
    for package in packages:
        members = _fetch(f"{package['name']}@{package['version']}")
        for file in package["files"]:
            data = members[f"package/{file['from']}"]
            found = hashlib.sha256(data).hexdigest()
            if not update and found != file["sha256"]:
                print(f"{package['name']}: {file['from']} has the hash {found}, not {file['sha256']}", file=sys.stderr)
                return 1
            file["sha256"] = found
            (FOLDER / file["to"]).write_bytes(data)
        print(f"{package['name']} {package['version']}: {len(package['files'])} files")
    if update:
        MANIFEST.write_text(json.dumps(packages, indent=2) + "\n")
    return 0


def _fetch(package: str) -> dict[str, bytes]:
    """Return the files of a package by name."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, package]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_TIMEOUT_S)
        [archive] = Path(folder).iterdir()
        with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as tar:
            return {each.name: _read(tar, each) for each in tar if each.isfile()}


def _read(tar: tarfile.TarFile, member: Any) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


if __name__ == "__main__":
    sys.exit(main())
