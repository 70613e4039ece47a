"""Write configs/schema.json, from which editors complete and check YAML files."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
from pathlib import Path
from typing import Any

from configs.section_base import Section
from configs.settings import Settings


def docstrings(section: type[Section]) -> dict[str, str]:
    """Return the docstrings below the fields of a section by name."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statements in itertools.pairwise(definition.body):
        match statements:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
    return found


def documented_schema() -> dict[str, Any]:
    """Return the JSON Schema of the settings, with the docstrings as descriptions.

    pydantic would extract them at each import of the settings: half of its time.
    """
    for section in Section.__subclasses__():  # in the order of their definition: parts come before the whole
        for name, text in docstrings(section).items():
            section.model_fields[name].description = text
        section.model_rebuild(force=True)
    return Settings.model_json_schema()


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "configs" / "schema.json"
    target.write_text(json.dumps(documented_schema(), indent=2) + "\n")
    print(f"wrote {target}")
