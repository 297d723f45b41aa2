"""The DeepSpeed program that trains a latent diffusion language model. Knows tensors, never clouds."""
