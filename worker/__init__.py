"""Worker process: takes tasks from the balancer, steps them in one batch and returns the results."""
