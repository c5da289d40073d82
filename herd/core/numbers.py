"""Numbers as people write them on a command line."""

import re

from herd.core.errors import HerdError

STEPS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def tokens(text: str) -> int:
    """`8192`, `8K` and `10M` (10,485,760) as a number: K, M and G are powers of 1,024, as contexts are counted."""
    found = re.fullmatch(r"([0-9][0-9_,]*)([kmg]?)", text.strip().lower())
    if not found:
        raise HerdError(f"{text!r} is not a number of tokens: write it as 8192, 8K or 10M")
    return int(re.sub("[_,]", "", found[1])) * STEPS[found[2]]
