"""Linear programs, solved by HiGHS."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

#: Relative tolerance of the solver, subtracted from its minimum.
_TOLERANCE = 1e-6
_OUT_OF_TIME, _INFEASIBLE = 1, 2
#: The interior point method is faster on long traces. It fails on a few degenerate programs.
_METHODS = ("highs-ipm", "highs-ds")
_TIME_LIMIT_S = 600.0

#: numpy has no type for an array of either kind of number.
Array = Any


class BoundUnavailable(Exception):
    """The program cannot be solved; the text says why."""


@dataclass(slots=True)
class ConstraintRows:
    """Constraints `coefficients @ variables <= right` (or ==) as they are collected."""

    rows: list[Array] = field(default_factory=list)
    columns: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    right: list[Array] = field(default_factory=list)
    count: int = 0

    def add(self, right: Array, *terms: tuple[Array, Array]) -> None:
        """Add one constraint for each element of `right`; a term has a column and a coefficient for each of them."""
        right = np.atleast_1d(np.asarray(right, dtype=float))
        rows = np.arange(self.count, self.count + len(right))
        self.right.append(right)
        for columns, values in terms:
            self.add_terms(rows, columns, values)
        self.count += len(right)

    def add_terms(self, rows: Array, columns: Array, values: Array) -> None:
        """Add terms to constraints by their number."""
        columns = np.asarray(columns)
        self.rows.append(np.asarray(rows))
        self.columns.append(columns)
        self.values.append(np.broadcast_to(np.asarray(values, dtype=float), columns.shape))

    def matrix(self, width: int) -> tuple[Array, Array]:
        """Return the sparse matrix and the right sides."""
        entries = (np.concatenate(self.values), (np.concatenate(self.rows), np.concatenate(self.columns)))
        return coo_matrix(entries, shape=(self.count, width)).tocsr(), np.concatenate(self.right)


class LinearProgram:
    """Minimises costs over variables of at least 0 under the constraints `less` (<=) and `equal` (==)."""

    def __init__(self) -> None:
        self.less, self.equal = ConstraintRows(), ConstraintRows()
        self._width = 0
        self._limits: list[tuple[Array, Array]] = []

    def variables(self, count: int, low: float = 0.0, high: float | Array = np.inf) -> Array:
        """Add variables between limits. Returns their columns."""
        columns = np.arange(self._width, self._width + count)
        self._width += count
        self._limits.append((np.full(count, low), np.broadcast_to(np.asarray(high, dtype=float), count)))
        return columns

    def minimum(self, columns: Array, costs: Array) -> float:
        """Return a lower bound of the least cost; infinity if no values meet the constraints.

        Raises `BoundUnavailable`.
        """
        cost = np.zeros(self._width)
        cost[columns] = costs
        low, high = (np.concatenate(part) for part in zip(*self._limits, strict=True))
        less, less_right = self.less.matrix(self._width)
        equal, equal_right = self.equal.matrix(self._width)
        limits, options = np.column_stack([low, high]), {"time_limit": _TIME_LIMIT_S}
        for method in _METHODS:
            found = linprog(cost, less, less_right, equal, equal_right, limits, method=method, options=options)
            if found.status == _INFEASIBLE:
                return math.inf
            if found.status == 0:
                return max(float(found.fun) * (1 - _TOLERANCE), 0.0)
            if found.status == _OUT_OF_TIME:
                break
        raise BoundUnavailable(f"the linear program was not solved: {found.message}")
