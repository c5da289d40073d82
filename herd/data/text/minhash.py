"""MinHash (rensa) over hashed character shingles, in 32 bands of 4 rows; and the true similarity of shingles."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from herd.data.text.passage import hash_runs

SHINGLE = 8
"""Characters of a shingle: about a word and a half, and right for scripts without spaces too."""
NUM_PERM, NUM_BANDS = 128, 32
MINHASH_SEED = 4
BATCH_CHARS = 1_000_000
"""Characters whose shingles are hashed at a time."""

Hashes = npt.NDArray[np.uint64]


def shingles(text: str) -> set[str]:
    """All runs of SHINGLE characters, letter case and white space aside."""
    plain = _plain(text)
    return {plain[start : start + SHINGLE] for start in range(max(len(plain) - SHINGLE + 1, 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    """The share of `a` and `b` that both have."""
    common = len(a & b)
    return common / max(len(a) + len(b) - common, 1)


def band_hashes(texts: Sequence[str]) -> Hashes:
    """A hash of each band of each text's MinHash."""
    plain = [_plain(text).ljust(SHINGLE) for text in texts]
    ends = np.cumsum([len(text) for text in plain])
    codes = np.frombuffer("".join(plain).encode("utf-32-le", "surrogatepass"), np.uint32)
    hashes = hash_runs(codes.astype(np.uint64), SHINGLE)
    is_within = np.ones(len(hashes), np.bool_)
    is_within[(ends[:-1, None] - np.arange(1, SHINGLE)).ravel()] = False  # runs of two texts
    offsets = np.concatenate(([0], ends - (SHINGLE - 1) * np.arange(1, len(ends) + 1)))
    tokens = mix(hashes[is_within])
    digests = RMinHash.digest_matrix_from_flat_token_hashes(tokens, offsets.astype(np.uint64), NUM_PERM, MINHASH_SEED)
    rows = np.array(digests.to_rows(), np.uint64).reshape(len(texts), NUM_BANDS, NUM_PERM // NUM_BANDS)
    return mix(hash_runs(rows.reshape(-1), NUM_PERM // NUM_BANDS)[:: NUM_PERM // NUM_BANDS]).reshape(len(texts), -1).T


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def mix(hashes: Hashes) -> Hashes:
    """The hashes with each bit depending on all (the end of SplitMix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
