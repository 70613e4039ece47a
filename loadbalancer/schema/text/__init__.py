"""OpenAI's text API: requests, responses and stream events of language models."""
