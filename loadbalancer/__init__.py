"""Owns every request from its arrival to its answer: the HTTP front door, the queue, and who works on what."""
