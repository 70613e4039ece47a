"""Imports the class of an engine and makes an instance. Every mistake is one sentence."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from worker.engine import DeviceLost, OutOfMemory, TaskError, UnsupportedModel

#: Of the modules that are loaded from a file.
_FILE_PREFIX = "muster_engine_"


def load_class(reference: str, folder: str = "") -> type:
    """Return the class for `package.module:Class` or `path/to/file.py:Class`.

    Modules are looked for in `folder` first. Raises `UnsupportedModel`.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise UnsupportedModel(f"engine {reference!r} is neither package.module:Class nor path/to/file.py:Class")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place, folder)
    found = getattr(module, name, None)
    if isinstance(found, type):
        return found
    if found is not None:
        raise UnsupportedModel(f"{place}: {name} is a {type(found).__name__}, not a class")
    own = [each.__name__ for each in vars(module).values() if isinstance(each, type) and _is_own(each, module)]
    known = f"it defines {', '.join(sorted(own))}" if own else "it defines no class"
    raise UnsupportedModel(f"{place} has no class {name}; {known}")


def make_instance(engine: type, options: Mapping[str, Any]) -> Any:
    """Call the class with the configured options. Raises `UnsupportedModel`."""
    try:
        parameters = inspect.signature(engine).parameters
        inspect.signature(engine).bind(**options)
    except TypeError as error:
        known = ", ".join(name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD)
        given = ", ".join(options) or "none"  # not their values, which may be secret
        raise UnsupportedModel(
            f"{engine.__name__} cannot be made with options {given}: {error}; it takes {known or 'none'}"
        ) from None
    except ValueError:  # a class without a signature
        pass
    try:
        return engine(**options)
    except Exception as error:
        raise UnsupportedModel(f"{engine.__name__}() failed: {_explain(error, source_file(engine))}") from error


@contextlib.contextmanager
def explained_failure(engine: Any, method: str) -> Iterator[None]:
    """Raises `UnsupportedModel` with the line of the user's file for an exception of this method."""
    try:
        yield
    except (UnsupportedModel, TaskError, OutOfMemory, DeviceLost, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        kind = type(engine)
        raise UnsupportedModel(f"{kind.__name__}.{method} failed: {_explain(error, source_file(kind))}") from error


def source_file(engine: type) -> str:
    """Return the file of the class; empty if it has none."""
    try:
        return inspect.getsourcefile(engine) or ""
    except TypeError:  # the class is built in, or was made without a file
        return ""


def _load_file(file: Path) -> ModuleType:
    file = file.expanduser().resolve()
    if not file.is_file():
        raise UnsupportedModel(f"engine: no such file: {file}")
    _prefer(str(file.parent))
    # The prefix keeps a file such as queue.py from hiding a module of the same name.
    name = _FILE_PREFIX + file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        text = _explain(error, str(file))
        del sys.modules[name]
        raise UnsupportedModel(f"{file} cannot be imported: {text}") from error
    return module


def _load_module(name: str, folder: str) -> ModuleType:
    if folder:
        _prefer(folder)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}.")
        where = f" in {folder} or in the packages of {sys.executable}" if missing else ""
        text = f"no module {name}{where}" if missing else f"{name} cannot be imported: {_explain(error)}"
        raise UnsupportedModel(f"engine: {text}") from error


def _prefer(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _is_own(found: type, module: ModuleType) -> bool:
    return found.__module__ == module.__name__ and not found.__name__.startswith("_")


def _explain(error: BaseException, file: str = "") -> str:
    """Return the error with the line of the user's file where it happened."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename} " if error.filename not in (None, file) else ""
        return f"{place}line {error.lineno}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = f"line {frames[-1].lineno}: " if frames else ""
    if isinstance(error, ModuleNotFoundError):
        return f"{line}no module {error.name}; install it for {sys.executable}"
    text = f"{line}{type(error).__name__}: {error}"
    if _imports_itself(error, file):
        stem = Path(file).stem
        return f"{text}; the file {stem}.py hides the module {stem}, so give it another name"
    return text


def _imports_itself(error: BaseException, file: str) -> bool:
    """Return whether an engine's file was imported once more, by its own name, as `numpy.py` that imports numpy."""
    stem = Path(file).stem
    if _FILE_PREFIX + stem not in sys.modules:  # it was named as a module
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    names = {frame.f_globals.get("__name__") for frame in frames}
    return stem in names or getattr(sys.modules.get(stem), "__file__", None) == file
