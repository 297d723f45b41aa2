"""Generation of one text of 64 tokens as two persistent kernels, for Hopper: `denoiser.cu` explains how they work."""
