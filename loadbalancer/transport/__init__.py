"""Connections to the workers."""
