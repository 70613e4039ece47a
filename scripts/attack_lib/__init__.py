"""Attacks on a running server, and the bounds that each must keep."""
