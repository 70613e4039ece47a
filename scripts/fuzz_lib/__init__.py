"""Fuzzing of a running balancer and a running worker: see `scripts/fuzz.py`."""
