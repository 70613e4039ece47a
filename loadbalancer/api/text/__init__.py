"""Answers of the text API, complete or as streams."""
