"""Whole numbers as people write them, on a command line and in a recipe."""

import re

from herd.errors import HerdError

SUFFIXES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def whole_number(text: str) -> int:
    """`8192`, `8_192`, `4e6`, `8K` or `10M`: K, M and G are powers of 1,024, as contexts are counted."""
    found = re.fullmatch(r"(-?[0-9][0-9_,]*)(?:e([0-9]{1,2})|([kmg]?))", text.strip().lower())
    if not found:
        raise HerdError(f"{text!r} is not a whole number: write it as 8192, 8K (8,192), 10M or 4e6")
    return int(re.sub("[_,]", "", found[1])) * 10 ** int(found[2] or 0) * SUFFIXES[found[3] or ""]
