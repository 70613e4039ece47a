"""Language models in libraries that schedule their own batches, such as vLLM, as step engines."""
