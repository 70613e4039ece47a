"""Prometheus metrics and the log of arrivals."""
