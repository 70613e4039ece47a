"""LoRA adapters: files, layers, and how many stay loaded."""
