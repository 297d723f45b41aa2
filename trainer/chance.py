"""Random numbers that depend on what they are for, and on nothing else."""

import hashlib

import torch


def keyed_generator(device: torch.device | str, *key: object) -> torch.Generator:
    """A generator whose numbers are a function of the key, whose parts have a stable `repr`.

    They differ between kinds of device.
    """
    return torch.Generator(device).manual_seed(_hashed(key) >> 1)


def key_words(*key: object) -> tuple[int, int]:
    """The key as two words of 32 bits, for a generator that is counted: `trainer.fast.noise`."""
    return divmod(_hashed(key), 2**32)


def _hashed(key: tuple[object, ...]) -> int:
    """64 bits. A hash, since sums of seed, step and index would repeat."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")
