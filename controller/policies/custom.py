"""A user-defined policy, given by import path: a function `scale(observation) -> Decision`.

It gets the same observation as the built-in policies, and the same bounds apply. An exception counts as no decision.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from configs.scaling import Scaling
from controller.types import Decision, Observation, WorkerLimits

Scale = Callable[[Observation], Decision]

#: The largest number that every reader of a report can have.
_MAX_NUMBER = 2**53


class PolicyImportError(Exception):
    """The policy cannot be imported. The message says what to change."""


class InvalidPolicy(Exception):
    """The function did not return a valid `Decision`."""


class CustomPolicy:
    """Adapts the user's function to the policy interface. The function keeps its own state, if any."""

    def __init__(self, path: str, scale: Scale) -> None:
        self._path = path
        self._scale = scale

    def __call__(
        self, observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: None, now: float
    ) -> tuple[Decision, None]:
        """Return the function's decision. Raises what the function raises, and `InvalidPolicy`."""
        del scaling, limits, memory, now
        try:
            decision = self._scale(observation)
        except SystemExit as error:  # it would end the server
            raise InvalidPolicy(f"{self._path} has called sys.exit({error.code!r})") from error
        if not _has_types(decision):
            raise InvalidPolicy(f"{self._path} must return a Decision with a whole number and a text, not {decision!r}")
        return decision, None


def _has_types(decision: Any) -> bool:
    """Return whether it is a `Decision` whose fields have their types, whatever the function has put into them."""
    return (
        isinstance(decision, Decision)
        and isinstance(decision.desired, int)
        and abs(decision.desired) <= _MAX_NUMBER
        and isinstance(decision.reason, str)
        and isinstance(decision.valid, bool)
        and isinstance(decision.inputs, Mapping)
    )


def load(path: str) -> CustomPolicy:
    """Return the policy at `package.module:function`. Raises `PolicyImportError`."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise PolicyImportError(
            f"policy {path}: {module_name} cannot be imported ({reason}); it must be in the working folder, "
            "in PYTHONPATH or in an installed package"
        ) from error
    scale = getattr(module, name, None)
    if not callable(scale):
        raise PolicyImportError(f"policy {path}: {module_name} has no function {name}")
    return CustomPolicy(path, scale)
