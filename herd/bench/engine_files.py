"""Writes the files that `herd bench engine` measures: `python -m herd.bench.engine_files SHAPE PRECISION FOLDER`."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models

from herd.bench.engine import SCHEMES
from herd.bench.oracles import random_model
from herd.bench.shapes import SHAPES
from herd.data.tokens.tiktoken import byte_letters
from herd.data.tokens.tokenizer import SPECIAL_TOKENS, Tokenizer, completed
from herd.model.formats import compressed, huggingface, llama_cpp
from herd.model.quantize import Scheme


def tokenizer(count: int) -> Tokenizer:
    """A byte-level BPE of `count` tokens with a single merge, as llama.cpp takes none without. The tokens beyond bytes
    are words that occur in no text, and that a model may generate."""
    letters = byte_letters()
    names = [*letters, "!!", *(f"a{i}" for i in range(257, count - len(SPECIAL_TOKENS)))]
    backend = Backend(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[("!", "!")]))
    return Tokenizer(completed(backend, SPECIAL_TOKENS))


def write(shape: str, precision: str, home: Path) -> None:
    """The folder in bf16 once, then what this precision needs."""
    words = tokenizer(SHAPES[shape].vocab_size)
    config = replace(SHAPES[shape], special=words.ids)
    plain, kind = home / "bf16", SCHEMES[precision]
    if not plain.exists():
        plain.mkdir()
        huggingface.save(random_model(config, seed=0, scale=0.03).bfloat16(), plain)
        huggingface.save_processor(config, plain)
        words.save(plain)
    weights = huggingface.open_folder(plain)
    path = home / f"{kind or 'BF16'}.gguf"
    llama_cpp.write_text(weights, words.document, path, dtype=torch.bfloat16, facts={}, quantized=kind)
    if kind:
        (home / precision).mkdir()
        scheme = Scheme(name=precision, group=32) if precision == "int4" else Scheme(name=precision)
        compressed.write(plain, home / precision, scheme)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
