"""API keys in tests of the HTTP API."""

from __future__ import annotations


class NoKeys:
    """API keys are off, as while there is no file of them."""

    ring = None
