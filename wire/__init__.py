"""What the balancer, the workers and the controller say to each other. Imports nothing else of ours."""
