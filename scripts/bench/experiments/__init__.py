"""Experiments of published articles on dynamic and continuous batching and on autoscaling, repeated here."""
