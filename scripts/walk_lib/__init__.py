"""Tracing of the real programs for `scripts/walk.py`."""
