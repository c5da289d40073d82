"""Tokenising beside the bare library, and the loader beside the training that it feeds.

The same English texts of the packages, with a vocabulary of the tiny preset's size. Ours goes from a Parquet table to
shards with their index, hashes and manifest on the disk; the library encodes the texts that are in memory already. The
loader makes the batches of pre-training on text; its peer is the tiny preset's model, without its encoder, that trains
on these batches.
"""

import json
import random
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from itertools import accumulate, count
from pathlib import Path
from statistics import median

import torch
from tokenizers import Tokenizer as Library

from herd.bench.table import Row
from herd.config import TINY_VOCAB, OptimizerConfig, PretrainConfig, preset
from herd.data.loading import tables
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.media.image import ImageProcessor
from herd.data.packages.text import readers
from herd.data.sources.fetch import pack_of
from herd.data.tokens.shard_writer import write_shards
from herd.data.tokens.tokenizer import Tokenizer, train_tokenizer
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.losses import language_loss
from herd.train.optimizer import Optimizer

TRAINED_STEPS = 4
"""Of each round, after one to warm up."""
TOKENIZER_TEXTS = 4000
"""Of which its merges are learnt."""
LOADED_TOKENS = 2_000_000
"""Of each round."""


def text_folder(folder: Path, megabytes: float) -> tuple[list[str], Tokenizer]:
    """A data folder with English text of the packages, all of it to train on; its texts and a tokenizer."""
    texts = ["\n".join(blocks) for name, reader, _ in readers("en") for blocks in reader({name: pack_of(name)}, "en")]
    random.Random(0).shuffle(texts)
    ends = accumulate(len(text) for text in texts)
    texts = texts[: bisect_left(list(ends), megabytes * 1e6) + 1]
    rows = [
        {"id": str(n), "split": "train", "language": "en", "source": "packages", "text": t} for n, t in enumerate(texts)
    ]
    tables.write(folder / "text.parquet", rows, tables.TEXT)
    return texts, train_tokenizer(texts[:TOKENIZER_TEXTS], TINY_VOCAB)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def token_rows(megabytes: float, rounds: int) -> list[Row]:
    """Megabytes of text a second."""
    with tempfile.TemporaryDirectory() as name:
        texts, tokenizer = text_folder(Path(name), megabytes)
        library, number = Library.from_str(json.dumps(tokenizer.document)), count()
        library.encode_special_tokens = True

        def ours() -> None:
            write_shards(Path(name), tokenizer, out=Path(name) / f"tokens-{next(number)}", quiet=True)

        def bare() -> None:
            _ = [encoded.ids for encoded in library.encode_batch_fast(texts, add_special_tokens=False)]

        took: dict[str, list[float]] = {"ours": [], "bare": []}
        for _ in range(rounds):
            took["ours"].append(seconds(ours))
            took["bare"].append(seconds(bare))
    size = sum(len(text.encode()) for text in texts) / 1e6
    return [
        Row(
            case="tokenising, from Parquet to shards", unit="MB/s",
            ours=size / median(took["ours"]), peer=size / median(took["bare"]),
            peer_name=f"tokenizers {version('tokenizers')}, texts in memory to ids", more_is_better=True,
        )
    ]  # fmt: skip


def loader_rows(megabytes: float, rounds: int) -> list[Row]:
    """Tokens a second of batches, planning included, and of the training that takes them."""
    with tempfile.TemporaryDirectory() as name:
        _, tokenizer = text_folder(Path(name), megabytes)
        write_shards(Path(name), tokenizer, quiet=True)
        config = PretrainConfig(picture_share=0.0, num_tokens=LOADED_TOKENS)

        def load() -> int:
            batches = PretrainBatches(Path(name), config, tokenizer, ImageProcessor(None))
            return sum(batches.batch(step).size for step in range(batches.num_steps))

        batches = PretrainBatches(Path(name), config, tokenizer, ImageProcessor(None))
        step = trainer(tokenizer)
        loaded, trained = list[float](), list[float]()
        for _ in range(rounds):
            begin = time.perf_counter()
            loaded.append(load() / (time.perf_counter() - begin))
            step(batches, 0)
            tokens = sum(batches.batch(number).size for number in range(TRAINED_STEPS))
            trained.append(tokens / seconds(lambda: [step(batches, number) for number in range(TRAINED_STEPS)]))
    return [
        Row(
            case="the loader, from shards to batches of text", unit="tokens/s", ours=median(loaded),
            peer=median(trained), peer_name="training of the tiny preset on them", more_is_better=True,
        )
    ]  # fmt: skip


def trainer(tokenizer: Tokenizer) -> Callable[[PretrainBatches, int], None]:
    """A step of training of the tiny preset, of text alone, as the recipes train."""
    shape = replace(preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids), vision=None)
    model = Transformer(shape).to(torch.bfloat16)
    initialise(model, torch.Generator().manual_seed(0))
    model.train()
    optimizer, loss_fn = Optimizer(model, OptimizerConfig(), num_steps=1000), language_loss(0.0)

    def step(batches: PretrainBatches, number: int) -> None:
        loss, _ = loss_fn(model, batches.batch(number))
        loss.backward()
        optimizer.step(number, float(optimizer.grad_norm()))
        optimizer.clear()

    return step
