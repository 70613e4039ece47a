"""Commands for people who look after a server that runs: `python -m controller status` and the like.

They speak to the balancer, as any other client would.
"""
