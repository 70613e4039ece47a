"""The parts of `scripts/chaos.py`: plan, server, clients, monitor, checks and report."""
