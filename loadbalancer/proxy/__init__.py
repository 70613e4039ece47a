"""The client of the upstream server that answers during a cold start."""
