"""Language models: prompts, generated texts, structured output, and the engine for models of transformers."""
