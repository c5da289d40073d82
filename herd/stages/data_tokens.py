"""The tokenizer of a data folder, of a model or made of its texts, and the tokens of its documents."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from herd.config import LANGUAGES, DataConfig
from herd.core.workers import Workers
from herd.data.loading import tables
from herd.data.tasks.rows import cell_name
from herd.data.tokens.shard_writer import write_shards
from herd.data.tokens.shards import TokenShards
from herd.data.tokens.tokenizer import Tokenizer, train_tokenizer
from herd.errors import HerdError
from herd.stages.data_packages import PACKAGES

Facts = dict[str, Any]
NAMES_REPEATED = 5
"""How often the tokenizer's training text repeats the names of the training pictures."""
TOKENIZER_CHARS = 20_000_000
"""Characters of each language that a new tokenizer is trained on at most: of more it would learn nothing else."""
MEASURED_CHARS = 1_000_000
"""Held-out characters of each language that bytes per token are measured on."""


def make_tokenizer(cfg: DataConfig, work: Path) -> Facts:
    """tokenizer/: that of the model that the config names, else a new one of the training texts. Raises HerdError where
    there are none."""
    samples = _samples(
        work,
        LANGUAGES if cfg.reads_packages else (),
        {cell_name(one.environment) for one in cfg.demonstrations},
    )
    if cfg.tokenizer:
        tokenizer = model_tokenizer(Path(cfg.tokenizer))
    else:
        train = samples["train"]
        if not any(train.values()):
            raise HerdError("there is no text to train a tokenizer on: give text too, or --tokenizer MODEL")
        names = _picture_names(work)
        for language, own in train.items():
            # What the model is asked to say most often should be short in tokens.
            own[:0] = ["\n".join(sorted({name[language] for name in names if language in name}))] * NAMES_REPEATED
        tokenizer = train_tokenizer(_balanced(train), cfg.vocab_size)
    shutil.rmtree(work / "tokenizer", ignore_errors=True)
    shutil.rmtree(work / "tokenizer.tmp", ignore_errors=True)
    tokenizer.save(work / "tokenizer.tmp")
    os.replace(work / "tokenizer.tmp", work / "tokenizer")
    bytes_per_token = {}
    for language, held in samples["heldout"].items():
        tokens = sum(map(len, tokenizer.encode_batch(held)))
        bytes_per_token[language] = round(sum(len(text.encode()) for text in held) / tokens, 3) if tokens else None
    return {"tokenizer": {"vocab_size": tokenizer.vocab_size, "bytes_per_token": bytes_per_token}}


def write_tokens(cfg: DataConfig, work: Path, workers: Workers) -> Facts:
    """tokens/ and book-tokens/: the tokens of the documents, in shards that training maps into memory."""
    tokenizer = model_tokenizer(Path(cfg.tokenizer)) if cfg.tokenizer else Tokenizer.load(work / "tokenizer")
    written = {
        table: TokenShards(write_shards(work, tokenizer, table=table, workers=workers, quiet=True))
        for table in ("text", "books")
        if tables.has(work, table)
    }
    return {"tokens": {table: {"documents": len(t), "tokens": t.num_tokens} for table, t in written.items()}}


def model_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, with the special ids that its config names."""
    from herd.model.formats import huggingface  # not needed to train a new one

    return Tokenizer.load(folder, ids=huggingface.open_folder(folder).config.special)


def _samples(work: Path, languages: Iterable[str], made: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """Texts by split and language, of training documents and answers and of held-out documents, up to a size: documents
    are in the order of their hashes, so that the first ones are a fair sample. Of the sources `made`, which have a few
    words each, questions count too."""
    limits = {"train": TOKENIZER_CHARS, "heldout": MEASURED_CHARS}
    found: dict[str, dict[str, list[str]]] = {split: {name: [] for name in languages} for split in limits}
    sizes: Counter[tuple[str, str]] = Counter()

    def add(split: str, language: str, text: str) -> None:
        own = found[split].setdefault(language, [])
        if sizes[split, language] < limits[split]:
            own.append(text)
            sizes[split, language] += len(text)

    if tables.has(work, "text"):
        for row in tables.rows(work / "text.parquet", ["split", "language", "text"]):
            add(row["split"], row["language"], row["text"])
    if tables.has(work, "chats"):
        for row in tables.rows(work / "chats.parquet", ["split", "language", "messages", "answer", "source"]):
            if row["split"] == "train":
                own = row["source"] != PACKAGES  # whose dialogues have the words of their texts
                roles = ("user", "assistant") if row["source"] in made else ("assistant",)
                add("train", row["language"], _said(row["messages"], roles) if own else row["answer"])
    return found


def _said(messages: str, roles: Collection[str]) -> str:
    said = [one["content"] for one in json.loads(messages) if one["role"] in roles]
    return "\n".join(text for text in said if isinstance(text, str))


def _picture_names(work: Path) -> list[dict[str, str]]:
    if not tables.has(work, "pictures"):
        return []
    rows = tables.rows(work / "pictures.parquet", ["split", "names"])
    return [json.loads(row["names"]) for row in rows if row["split"] == "train"]


def _balanced(texts: dict[str, list[str]]) -> Iterator[str]:
    """The languages weighed by the square root of their size: small ones are repeated, a large one is cut.

    Sizes are in characters and not in bytes, or scripts of three bytes a letter would be learnt at a third.
    """
    sizes = {language: size for language, own in texts.items() if (size := sum(map(len, own)))}
    median = sorted(sizes.values())[len(sizes) // 2]
    for language, size in sizes.items():
        wanted, given = int(max(size * median, median * median) ** 0.5), 0
        while given < wanted:
            for text in texts[language]:
                yield text
                given += len(text)
                if given >= wanted:
                    break
