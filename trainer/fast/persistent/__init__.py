"""One text of 64 tokens by two persistent kernels, for Hopper: `persistent.cu` explains how they work."""
