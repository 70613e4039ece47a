"""Durable jobs and their webhooks."""
