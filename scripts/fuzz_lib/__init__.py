"""Frames that no honest peer sends, for a running balancer and a running worker: see `scripts/fuzz.py`."""
