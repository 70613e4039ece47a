"""Starts, drains and replaces workers: observe, decide, plan, act, every `interval_s` and whenever one dies."""
