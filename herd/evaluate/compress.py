"""xz -9 as a baseline of bits per byte: the whole file counts, header and checksum too."""

import lzma


def xz_bytes(text: bytes) -> int:
    """Size of `xz -9`'s file."""
    return len(lzma.compress(text, preset=9))


def xz_bytes_after(seen: bytes, text: bytes) -> int:
    """What `text` adds to the file when it follows `seen`: the size of both less the size of `seen`."""
    return xz_bytes(seen + text) - xz_bytes(seen)
