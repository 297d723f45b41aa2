"""The frozen encoder's blocks on a GPU: transformers' arithmetic with fewer and larger kernels."""
