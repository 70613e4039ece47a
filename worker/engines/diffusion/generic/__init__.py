"""The generic engine: runs any diffusers pipeline and batches the denoiser calls of its requests.

Each request runs the pipeline's unchanged `__call__` in its own thread (`pipeline_thread`). It uses a copy of the
pipeline (`pipeline_copy`) whose denoiser blocks until the step loop has run its call. A step joins compatible pending
calls into one forward pass and splits the output (`call_batching`). The arguments of `__call__` are derived from its
signature (`arguments`).

Compared to `DiffusionEngine`, a row costs a few hundred microseconds more per step. Checkpoints, previews and LoRA
adapters are not available.
"""
