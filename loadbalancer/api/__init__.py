"""The HTTP API: server, middlewares, routes."""
