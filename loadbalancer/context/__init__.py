"""What is known of the request that the current code works for."""
