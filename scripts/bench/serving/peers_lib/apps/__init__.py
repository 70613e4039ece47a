"""The same user model in each server. Each module runs in the environment of its server."""
