"""What the author of an engine imports. It needs nothing but the standard library.

An engine is any class with `load(device)` and `predict(items)`; no base class is required. `Engine` and
`IterativeEngine` document the methods. `docs/engines.md` is the guide.
"""

from __future__ import annotations

from muster.interface import Engine, IterativeEngine
from muster.results import Content, Failed

__all__ = ["Content", "Engine", "Failed", "IterativeEngine"]
