"""The load test. Modules that Locust's environment imports need the standard library only, or what Locust brings."""
