"""Discrete-event simulation of the live controller's autoscaler on a traffic trace.

`cluster` and `model_sim` hold the simulated workers, `agents` the autoscalers, and `simulator` the clock. `results`
computes the metrics. `traces` and `synthetic` provide the arrivals, and `scenarios` combines arrivals, workers and
limits. `reference` has the autoscalers to compare with and the best schedule in hindsight. `cli` and `tune` are the
commands.
"""
