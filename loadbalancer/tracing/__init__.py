"""Traces of requests: their context, and the spans that are sent to a collector."""
