"""Random numbers as a function of their place: what a name, step and index draw never depends on what ran before."""

import hashlib

import numpy as np


def seed_of(seed: int, *place: int | str) -> int:
    """A 63-bit seed for `place` under the run's `seed`."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, *place: int | str) -> np.random.Generator:
    """The generator of `place` under the run's `seed`."""
    return np.random.Generator(np.random.PCG64(seed_of(seed, *place)))
