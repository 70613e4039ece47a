"""Diffusion checkpoints behind the step loop: any mix of requests of one shape shares each forward pass."""
