"""Traces: the spans of requests, tasks and jobs, and their way to a collector."""
