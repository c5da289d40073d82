"""Writes the files that `herd bench engine` measures: `python -m herd.bench.engine_files SHAPE PRECISION FOLDER`."""

import sys
from pathlib import Path

import torch

from herd.bench.engine import SCHEMES, SHAPES
from herd.bench.oracles import random_model
from herd.core.files import write_json
from herd.model.formats import compressed, huggingface, llama_cpp
from herd.model.quantize import Scheme


def tokenizer(count: int) -> dict[str, object]:
    """A byte-level BPE of `count` tokens with a single merge, as llama.cpp takes none without: it reads no text."""
    bytes_ = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    bytes_ += [chr(256 + i) for i in range(256 - len(bytes_))]
    names = [*bytes_, "!!", *(f"a{i}" for i in range(257, count))]
    vocabulary = {name: i for i, name in enumerate(names)}
    return {"model": {"vocab": vocabulary, "merges": ["! !"]}, "added_tokens": []}


def write(shape: str, precision: str, home: Path) -> None:
    """The folder in bf16 once, then what this precision needs."""
    config, plain, kind = SHAPES[shape], home / "bf16", SCHEMES[precision]
    if not plain.exists():
        plain.mkdir()
        huggingface.save(random_model(config, seed=0, scale=0.03).bfloat16(), plain)
        huggingface.save_processor(config, plain)
        write_json(plain / "tokenizer.json", tokenizer(config.vocab_size))
    weights = huggingface.open_folder(plain)
    path = home / f"{kind or 'BF16'}.gguf"
    llama_cpp.write_text(weights, plain, path, dtype=torch.bfloat16, facts={}, quantized=kind)
    if kind:
        (home / precision).mkdir()
        scheme = Scheme(name=precision, group=32) if precision == "int4" else Scheme(name=precision)
        compressed.write(plain, home / precision, scheme)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
