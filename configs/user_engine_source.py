"""Finds what is wrong with the class of a user's engine, by its source alone: nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from configs.text import closest
from configs.user_engine import engine_reference

_NO_ARGUMENTS = ast.arguments([], [ast.arg("self")], None, [], [], None, [])
#: In the body of a class whose constructor can be seen.
_PLAIN_NODES = (ast.Expr, ast.FunctionDef, ast.AsyncFunctionDef, ast.AnnAssign, ast.Assign, ast.Pass, ast.ClassDef)


def engine_problems(engine: str, folder: str, options: Collection[str] = ()) -> Iterator[str]:
    """Yield what keeps the class from being made with these options, as far as its file shows it."""
    reference = engine_reference(engine)
    if reference.is_file:
        file = Path(reference.place)
        if not file.is_file():
            yield f"engine: no such file: {file}"
            return
    else:
        found = _module_file(reference.place, Path(folder))
        if found is None:  # a package of the environment, which only the worker's interpreter knows
            return
        file = found
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except OSError as error:
        yield f"engine: {file} cannot be read: {error.strerror}"
        return
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}:" if isinstance(error, SyntaxError) else ""
        yield f"engine: {file}{line} {getattr(error, 'msg', error)}"
        return
    names = _names(tree)
    if reference.class_name not in names and "*" not in names:
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        known = f"it defines {', '.join(classes)}" if classes else "it defines no class"
        yield f"engine: {file} has no class {reference.class_name}; {known}"
        return
    made = next(
        (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == reference.class_name), None
    )
    if made is not None:
        yield from _option_problems(made, options)


def installed_package(engine: str, folder: str) -> str:
    """Return the package that must be installed for this class; empty if its file or folder is there."""
    reference = engine_reference(engine)
    package = reference.place.partition(".")[0]
    if not package or reference.is_file or (Path(folder) / package).is_dir() or _module_file(package, Path(folder)):
        return ""
    return package


def package_problem(package: str, folder: str) -> str:
    """Return that this interpreter has no such package; empty if it has, or if the name is empty."""
    if not package or importlib.util.find_spec(package) is not None:
        return ""
    return f"engine: no module {package} in {folder} or in the packages of {sys.executable}"


def _option_problems(made: ast.ClassDef, options: Collection[str]) -> Iterator[str]:
    """Compare the options with `__init__`, if the class has one of its own, or surely none, and nothing wraps it."""
    own = {node.name: node.args for node in made.body if isinstance(node, ast.FunctionDef) and not node.decorator_list}
    arguments = own.get("__init__", _NO_ARGUMENTS if _has_default_constructor(made) else None)
    if arguments is None or arguments.vararg or made.decorator_list or made.keywords or "__new__" in own:
        return
    positional = [each.arg for each in (*arguments.posonlyargs, *arguments.args)][1:]
    keyword_only = [each.arg for each in arguments.kwonlyargs]
    known = [*positional, *keyword_only]
    takes = f"{made.name} takes {', '.join(known) or 'none'}"
    for name in options:
        if name not in known and arguments.kwarg is None:
            near = closest(name, known)
            yield f"options.{name}: unknown option{f'; did you mean `{near}`?' if near else ';'} {takes}"
    required = positional[: len(positional) - len(arguments.defaults)]
    required += [name for name, value in zip(keyword_only, arguments.kw_defaults, strict=True) if value is None]
    for name in required:
        if name not in options:
            yield f"options.{name}: is required; {takes}"


def _has_default_constructor(made: ast.ClassDef) -> bool:
    """Return whether the class has no bases and nothing in it can define `__init__` or `__new__`."""
    is_plain = all(isinstance(node, _PLAIN_NODES) for node in made.body)
    names = {node.name for node in ast.walk(made) if isinstance(node, ast.FunctionDef)}
    names |= {node.id for node in ast.walk(made) if isinstance(node, ast.Name)}
    return is_plain and not made.bases and names.isdisjoint(("__init__", "__new__"))


def _module_file(module: str, folder: Path) -> Path | None:
    """Return the module's file if it is in the folder."""
    place = folder.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _names(tree: ast.Module) -> set[str]:
    """Return the names that a module defines or imports at its top level, also inside `if` and `try`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(each.asname or each.name).partition(".")[0] for each in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names
