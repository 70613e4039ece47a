"""Language models in vLLM, which runs in an environment of its own."""
