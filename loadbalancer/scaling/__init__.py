"""What the balancer keeps for the controller: pending commands, decisions, the last report."""
