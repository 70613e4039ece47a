"""Finds the metrics and labels in expressions of PromQL, and those that do not exist.

This is no parser: `promtool` parses. Here names are compared with what the code exports.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

#: Prometheus adds these to all series.
_TARGET_LABELS = frozenset({"job", "instance"})
#: Series that Prometheus makes itself.
_OF_PROMETHEUS = {"up": frozenset[str]()}
_SELECTOR = re.compile(r"\b(muster_\w+|process_\w+|up)\b(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


class Selector(NamedTuple):
    """A metric in an expression, and the labels that select its series."""

    metric: str
    labels: frozenset[str]


def selectors(expr: str) -> list[Selector]:
    """Return the metrics of an expression in their order."""
    # A value may hold braces, as `$model` in a template does.
    plain = _STRING.sub('""', expr)
    return [Selector(name, frozenset(_LABEL.findall(labels))) for name, labels in _SELECTOR.findall(plain)]


def problems(expr: str, legend: str, known: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """Yield what the expression and its legend name that does not exist. `known`: labels by series."""
    series = {**known, **_OF_PROMETHEUS}
    found = selectors(expr)
    if not found:
        yield "it names no metric"
    available = set(_TARGET_LABELS)
    for metric, labels in found:
        if metric not in series:
            yield f"there is no metric {metric}"
            continue
        available |= series[metric]
        for label in sorted(labels - series[metric] - _TARGET_LABELS):
            yield f"{metric} has no label {label}"
    plain = _STRING.sub('""', expr)
    grouped = {label.strip() for labels in _GROUPING.findall(plain) for label in labels.split(",") if label.strip()}
    for label in sorted((grouped | set(_LEGEND.findall(legend))) - available):
        yield f"no metric of it has the label {label}"
