"""Bodies of requests, responses, events and errors."""
