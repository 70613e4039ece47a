"""The diffusion engines: they batch the denoiser calls of concurrent image requests."""
