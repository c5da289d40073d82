"""The released `tokenizer.model`: a line for each token, its bytes in base64 and its rank, which is its id.

Two halves merge into a token when both are tokens; every such pair becomes a merge, in the order of the ranks. A token
is reached over one of its pairs only (the one that the lower ranks leave), so that the others change nothing, and
the ids are tiktoken's. The special tokens are not in the file: they follow the last rank in the order below.
Source: Meta's llama-models 0.3.0.
"""

import base64
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from herd.errors import HerdError

NUM_SPECIAL = 2048


def special_tokens() -> list[str]:
    """Llama 4's 2,048 special tokens in the order of their ids."""

    def reserved(group: str, first: int, last: int) -> list[str]:
        return [f"<|{group}reserved_special_token_{i}|>" for i in range(first, last + 1)]

    named = [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
        *("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"),
        *reserved("text_post_train_", 0, 5),
        *("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"),
        *reserved("text_post_train_", 8, 68),
        *("<|image_start|>", "<|image_end|>"),
        *reserved("vision_", 0, 1),
        *("<|tile_x_separator|>", "<|tile_y_separator|>"),
        *reserved("vision_", 2, 5),
        "<|image|>",
        *reserved("vision_", 6, 6),
        "<|patch|>",
        *reserved("vision_", 7, 1047),
        *reserved("reasoning_", 0, 7),
        *("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"),
    ]
    return [*named, *reserved("", 0, NUM_SPECIAL - len(named) - 1)]


def read_tiktoken(path: Path) -> Backend:
    """The merges of `path`, without its pattern and special tokens. Raises HerdError for a file of another kind."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:  # of base64 too
            raise HerdError(f"{path} line {number} is not a base64 token and its rank, as tiktoken writes") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise HerdError(f"{path} has {len(ranks)} tokens whose ranks have gaps, or lacks single bytes: is it whole?")
    letters = byte_letters()
    names = {token: "".join(map(letters.__getitem__, token)) for token in ranks}
    merges = [
        (names[token[:i]], names[token[i:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    # A piece that is a token as it stands is taken whole before anything merges, as in tiktoken.
    vocab = {names[token]: rank for token, rank in ranks.items()}
    return Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))


def byte_letters() -> list[str]:
    """The visible letter that stands for each of the 256 bytes in a byte-level vocabulary (GPT-2's table)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(256)]
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    return letters
