"""Commands for a running server, such as `python -m controller status`. They use the balancer's HTTP API."""
