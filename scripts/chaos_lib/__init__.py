"""The parts of `scripts/chaos.py`: what is asked, what is broken, who asks, who watches, and what came of it."""
