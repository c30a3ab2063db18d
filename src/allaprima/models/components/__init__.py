"""Components of the diffusers folder format: loading, latents, LoRA, tokenizers, schedulers, fingerprints."""
