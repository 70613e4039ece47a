"""A policy of the user's own, by import path: a function `scale(observation) -> Decision`.

It sees what Muster's own policies see and is held to the same bounds. What it raises is no decision.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from configs.scaling import Scaling
from controller.types import Decision, Observation, WorkerLimits

Scale = Callable[[Observation], Decision]


class PolicyImportError(Exception):
    """A policy that cannot be had; the text says what to change."""


class InvalidPolicy(Exception):
    """What the function gave back is no decision."""


class CustomPolicy:
    """The user's function as a policy. It keeps what it likes to remember itself."""

    def __init__(self, path: str, scale: Scale) -> None:
        self._path = path
        self._scale = scale

    def __call__(
        self, observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: None, now: float
    ) -> tuple[Decision, None]:
        """Its decision. Raises whatever it raises, and `Mistaken`."""
        del scaling, limits, memory, now
        decision = self._scale(observation)
        if not isinstance(decision, Decision) or not isinstance(decision.desired, int):
            raise InvalidPolicy(f"{self._path} must return a Decision with a whole number, not {decision!r}")
        return decision, None


def load(path: str) -> CustomPolicy:
    """The policy at `package.module:function`. Raises `CannotImport`."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        why = f"{type(error).__name__}: {error}"
        raise PolicyImportError(
            f"policy {path}: {module_name} cannot be imported ({why}); it must lie in the working folder, "
            "in PYTHONPATH or in an installed package"
        ) from error
    scale = getattr(module, name, None)
    if not callable(scale):
        raise PolicyImportError(f"policy {path}: {module_name} has no function {name}")
    return CustomPolicy(path, scale)
