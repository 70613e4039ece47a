"""Changes of the section `scaling` by options and searches: fields by dotted path, such as `slo.max_wait_s`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from configs.fields import with_field_names
from configs.load import section_problems
from configs.scaling import POLICY_FIELDS, Scaling
from configs.yaml_file import InvalidYaml, parse_yaml

_SECTION = "scaling."


class InvalidScaling(ValueError):
    """These fields are no section `scaling`; the text names field, value and what is allowed."""


def parse_fields(pairs: Sequence[str]) -> dict[str, Any]:
    """Return `a.b=1` options as nested fields. Raises `InvalidScaling`."""
    values = []
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals or not all(path.split(".")):
            raise InvalidScaling(f"--set {pair} must be KEY=VALUE, such as interval_s=10 or slo.max_wait_s=5")
        try:
            values.append((path.removeprefix(_SECTION), parse_yaml(value).value))
        except InvalidYaml as error:
            raise InvalidScaling(f"--set {pair}: {error}") from None
    tree: dict[str, Any] = {}
    for path, value in values:
        tree = merge_fields(tree, nested_fields({path: value}))
    return tree


def nested_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted path as nested fields."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        for key in reversed(path.split(".")):
            value = {key: value}
        tree = merge_fields(tree, value)
    return tree


def with_fields(scaling: Scaling, tree: Mapping[str, Any]) -> Scaling:
    """Return the scaling with these fields set, without fields that its policy does not read.

    Raises `InvalidScaling`.
    """
    given = with_field_names(Scaling, dict(tree))
    merged = merge_fields(scaling.model_dump(exclude_unset=True), given)
    policy = merged.get("policy", Scaling.model_fields["policy"].default)
    if isinstance(policy, str) and policy in POLICY_FIELDS:
        unused = frozenset().union(*POLICY_FIELDS.values()) - POLICY_FIELDS[policy] - set(given)
        merged = {key: value for key, value in merged.items() if key not in unused}
    try:
        return Scaling.model_validate(merged)
    except ValidationError as error:
        raise InvalidScaling("; ".join(section_problems(error, merged, Scaling))) from None


def merge_fields(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of both; of a field in both, that of `overrides`."""
    merged = dict(base)
    for key, value in overrides.items():
        inner = merged.get(key)
        merged[key] = merge_fields(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged
