"""LoRA adapters: file validation, model layers and the cache of loaded adapters."""
