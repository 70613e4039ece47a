"""Language models: Muster's engines beside the libraries themselves, and beside ways without continuous batching."""
