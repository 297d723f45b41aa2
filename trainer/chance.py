"""Random numbers that depend on what they are for, and on nothing else."""

import hashlib

import torch


def keyed_generator(device: torch.device | str, *key: object) -> torch.Generator:
    """A generator whose numbers are a function of the key, whose parts have a stable `repr`.

    They differ between kinds of device.
    """
    # A hash, since sums of seed, step and index would repeat.
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)
