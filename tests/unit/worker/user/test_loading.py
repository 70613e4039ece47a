"""The class of an engine is found, or one sentence says why not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from worker.engine import UnsupportedModel
from worker.engines.user.loading import load_class, make_instance

SOURCE = """
import sibling
class Engine:
    value = sibling.VALUE
    def __init__(self, size=1, *, name=""):
        self.size, self.name = size, name
class Failing:
    def __init__(self):
        raise RuntimeError("no weights")
class _Hidden: ...
def function(): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    files = {
        "queue.py": SOURCE,  # a name of the standard library
        "sibling.py": "VALUE = 7",
        "missing.py": "x = 1\nimport no_such_module_here\n",
        "broken.py": "def (",
        "uses_broken.py": "x = 1\nimport broken\n",
        "wave.py": "import wave\nwave.open\n",
        "leaves.py": "import sys\nsys.exit(3)",
        "raises.py": "x = 1\n\ny = 1 / 0",
        "nothing.py": "x = 1",
        "pack/__init__.py": "",
        "pack/engines.py": "class Engine: ...",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_class_of_a_file_imports_its_siblings(folder: Path) -> None:
    found: Any = load_class(f"{folder}/queue.py:Engine")
    assert found.value == 7
    import queue

    assert not hasattr(queue, "Engine"), "the module of the standard library stays"
    made = make_instance(found, {"size": 3, "name": "x"})
    assert (made.size, made.name) == (3, "x")


def test_class_of_a_module_is_looked_for_in_the_folder(folder: Path) -> None:
    assert load_class("pack.engines:Engine", str(folder)).__name__ == "Engine"
    assert load_class("collections:OrderedDict").__name__ == "OrderedDict"


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("{0}/other.py:Engine", "no such file: {0}/other.py"),
        ("{0}/queue.py:Other", "queue.py has no class Other; it defines Engine, Failing"),
        ("{0}/queue.py:function", "function is a function, not a class"),
        ("{0}/nothing.py:Engine", "nothing.py has no class Engine; it defines no class"),
        (
            "{0}/missing.py:Engine",
            "missing.py cannot be imported: line 2: no module no_such_module_here; install it for",
        ),
        ("{0}/broken.py:Engine", "broken.py cannot be imported: line 1: invalid syntax"),
        ("{0}/uses_broken.py:Engine", "uses_broken.py cannot be imported: {0}/broken.py line 1: invalid syntax"),
        ("{0}/wave.py:Engine", "the file wave.py hides the module wave, so give it another name"),
        ("{0}/leaves.py:Engine", "leaves.py cannot be imported: line 2: SystemExit: 3"),
        ("{0}/raises.py:Engine", "raises.py cannot be imported: line 3: ZeroDivisionError: division by zero"),
        ("pack.other:Engine", "no module pack.other in {0} or in the packages of"),
        ("nopackage.other:Engine", "no module nopackage.other in {0}"),
        ("missing:Engine", "missing cannot be imported: no module no_such_module_here; install it"),
        ("Engine", "neither package.module:Class nor path/to/file.py:Class"),
    ],
)
def test_what_cannot_be_loaded_is_explained(folder: Path, reference: str, text: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        load_class(reference.format(folder), str(folder))
    assert text.format(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("Engine", {"sise": 3}, "got an unexpected keyword argument 'sise'; it takes size, name"),
        ("Failing", {"x": 1}, "it takes none"),
        ("Failing", {}, "Failing() failed: line 9: RuntimeError: no weights"),
    ],
)
def test_wrong_options_are_explained(folder: Path, name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        make_instance(load_class(f"{folder}/queue.py:{name}"), options)
    assert text in str(caught.value)
