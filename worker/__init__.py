"""One model-server process: pulls tasks from the balancer, steps them in one batch, sends results back."""
