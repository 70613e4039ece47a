"""Every number of the configuration has its bounds, and they are in force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import annotated_types
import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from configs.fields import alternatives, mapping_value, section_of
from configs.load import ConfigError, load
from configs.section_base import MAX_MESSAGE_BYTES
from configs.settings import Settings


def sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield section
    for field in section.model_fields.values():
        inner = section_of(field.annotation) or section_of(mapping_value(field.annotation))
        if inner is not None:
            yield from sections(inner)


BOUNDED = [
    pytest.param(section, name, bound.le, id=f"{section.__name__}.{name}")
    for section in dict.fromkeys(sections(Settings))
    for name, field in section.model_fields.items()
    if {int, float} & set(alternatives(field.annotation))
    for bound in field.metadata
    if isinstance(bound, annotated_types.Le)
]


def mistakes(section: type[BaseModel], name: str, value: object) -> list[str]:
    """Return the keys of the values that the section refuses."""
    field: FieldInfo = section.model_fields[name]
    try:
        section.model_validate({str(field.alias or name): value})
    except ValidationError as error:
        return [str(each["loc"][0]) for each in error.errors() if each["loc"]]
    return []


@pytest.mark.parametrize(("section", "name", "most"), BOUNDED)
def test_each_upper_bound_of_a_field_is_in_force(section: type[BaseModel], name: str, most: float) -> None:
    """Of two bounds of one kind, pydantic checks the last one only."""
    assert name in mistakes(section, name, most + 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.shutdown_s", "9"),
        ("server.send_timeout_s", "1e9"),
        ("server.max_body_bytes", "513MiB"),
        ("server.max_upload_bytes", "1GiB"),
        ("server.max_prompt_chars", "1000000000"),
        ("queue.max_attempts", "1000000000"),
        ("workers.max_result_bytes", "1GB"),
        ("workers.heartbeat_s", "4000"),
        ("models.m.limits.max_pixels", "1000000000"),
        ("models.m.limits.min_side", "2048"),
        ("models.m.text.context_length", "3000000000"),
        ("models.m.text.defaults.top_k", "3000000000"),
        ("models.m.text.limits.max_schema_bytes", "8MiB"),
    ],
)
def test_value_that_nothing_could_work_with_is_refused(tmp_path: Path, key: str, value: str) -> None:
    *path, name = key.split(".")
    file = tmp_path / "muster.yaml"
    lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(path)]
    own = f"{'  ' * len(path)}{name}: {value}"
    engine = ["    engine: sim"] if path[0] == "models" else ["models: {m: {engine: sim}}"]
    text = [*lines[:2], *engine, *lines[2:], own] if path[0] == "models" else [*lines, own, *engine]
    file.write_text("\n".join(text) + "\n")
    with pytest.raises(ConfigError) as refused:
        load(file)
    [problem] = refused.value.problems
    assert problem.where.startswith(str(file))
    assert name in str(problem)
    assert "must " in problem.message


def test_largest_message_fits_into_a_row_of_the_database() -> None:
    """SQLite takes at most 1e9 bytes, among which are those of the names of the parts."""
    assert MAX_MESSAGE_BYTES < 0.9e9
