"""What the fields of the sections hold: walks pydantic's annotations."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

Tree = dict[str, Any]


def alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, without `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from alternatives(member)
    else:
        yield annotation


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that the field holds; None if it holds none."""
    found = (each for each in alternatives(annotation) if isinstance(each, type) and issubclass(each, BaseModel))
    return next(found, None)


def list_item(annotation: Any) -> Any:
    """Return the type of the items if the field holds a list; None if it does not."""
    return next((get_args(each)[0] for each in alternatives(annotation) if get_origin(each) in (tuple, list)), None)


def mapping_value(annotation: Any) -> Any:
    """Return the type of the values if the field holds a mapping by name; None if it does not."""
    return next((get_args(each)[1] for each in alternatives(annotation) if get_origin(each) is dict), None)


def accepts_null(annotation: Any) -> bool:
    return type(None) in alternatives(annotation)


def annotation_at(section: type[BaseModel], path: Sequence[str | int]) -> Any:
    """Return the annotation of the field at the path of field names and indexes; None if there is no such field."""
    found: Any = section
    for part in path:
        inner = section_of(found)
        if inner is not None and part in inner.model_fields:
            found = inner.model_fields[part].annotation
        elif isinstance(part, int) and list_item(found) is not None:
            found = list_item(found)
        elif inner is None and mapping_value(found) is not None:
            found = mapping_value(found)
        else:
            return None
    return found


def field_path(section: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the path with the name of the field in place of each alias. Unknown keys stay."""
    found: list[str] = []
    for part in path:
        inner = section_of(annotation_at(section, found))
        found.append(_renamed(inner).get(part, part) if inner is not None else part)
    return found


def aliases(field: FieldInfo) -> list[str]:
    """Return all names of the field in files, if it has several."""
    alias = field.validation_alias
    return [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else []


def with_field_names(annotation: Any, value: Any) -> Any:
    """Return the value with the name of the field in place of each alias.

    If a section has both, they stay: validation refuses them.
    """
    section, inner = section_of(annotation), mapping_value(annotation)
    if isinstance(value, list) and (item := list_item(annotation)) is not None:
        return [with_field_names(item, each) for each in value]
    if not isinstance(value, dict):
        return value
    if section is None:
        return {key: with_field_names(inner, each) for key, each in value.items()} if inner else value
    renamed = _renamed(section)
    tree: Tree = {}
    for key, each in value.items():
        name = str(renamed.get(key, key))
        field = section.model_fields.get(name)
        tree[key if name in value else name] = with_field_names(field.annotation, each) if field else each
    return tree


def _renamed(section: type[BaseModel]) -> dict[str, str]:
    return {alias: name for name, field in section.model_fields.items() for alias in aliases(field)}
