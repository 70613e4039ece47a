"""The autoscaler: the decisions of one tick. Pure."""
