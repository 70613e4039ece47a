"""Engines that users write: a class by its import path or file, run as a `StepEngine`."""
