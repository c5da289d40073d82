"""Packages to a data folder: text, books, pictures, clips, chats, the tokenizer and tokens, and a card that says what
they are.

The work is done in steps; each leaves its file and, after it, a small note with its figures. A run that was killed goes
on after the last step whose note was made under the same config and from the same packages.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from herd.config import LANGUAGES, DataConfig
from herd.core.files import partial, write_json
from herd.core.lineage import Stage
from herd.core.progress import progress_bar
from herd.data.loading import tables
from herd.data.loading.tables import Clip, Picture
from herd.data.packages.books import books
from herd.data.packages.dialogues import Caps, all_chats
from herd.data.packages.pictures import HELD_OUT_SPLITS, all_pictures, clips
from herd.data.packages.text import CLEANING, read_language
from herd.data.sources.fetch import Fetched, fetch
from herd.data.sources.package_list import LEFT_OUT, SOURCES
from herd.data.tasks.chats import Chat
from herd.data.text.dedup import deduplicate
from herd.data.text.documents import Document
from herd.data.text.report import Report
from herd.data.text.spelling import spellings
from herd.data.text.splits import split_documents
from herd.data.tokens.shard_writer import write_shards
from herd.data.tokens.shards import TokenShards
from herd.data.tokens.tokenizer import Tokenizer, train_tokenizer
from herd.errors import HerdError

Facts = dict[str, Any]

NAMES_REPEATED = 5
"""How often the tokenizer's training text repeats the names of the training pictures."""


def build_data(cfg: DataConfig, out: Path) -> Path:
    """Write the data folder `out`. Raises HerdError when the packages give no text or no pictures."""
    fetched = fetch()
    stage = Stage("data", out, config=cfg, parents={})
    steps = _Steps(partial(out), cfg, fetched)
    facts: Facts = {}
    with progress_bar("data", len(_STEPS)) as bar:
        for name, step in _STEPS.items():
            bar.describe(f"data: {name}")
            facts |= steps.run(name, step)
            stage.keep_time()
            bar.advance()
    steps.forget()
    return stage.finish(card={"sources": _source_facts(fetched), **facts, "left_out": _left_out(fetched)})


class _Steps:
    """Runs steps in the `.partial` folder, each once for a config and a set of packages."""

    def __init__(self, work: Path, cfg: DataConfig, fetched: Fetched) -> None:
        self.work, self.cfg, self.fetched = work, cfg, fetched
        packages = sorted((name, pack.sha256) for name, pack in fetched.packs.items())
        self.key = hashlib.sha256(json.dumps([asdict(cfg), packages]).encode()).hexdigest()

    def run(self, name: str, step: "Step") -> Facts:
        note = self._note(name)
        if note.exists():
            kept = json.loads(note.read_text())
            if kept["key"] == self.key:
                return dict(kept["facts"])
        facts = step(self.cfg, self.fetched, self.work)
        write_json(note, {"key": self.key, "facts": facts})
        return facts

    def forget(self) -> None:
        """Remove the notes of the steps."""
        for name in _STEPS:
            self._note(name).unlink(missing_ok=True)

    def _note(self, name: str) -> Path:
        return self.work / f".{name}.json"


Step = Callable[[DataConfig, Fetched, Path], Facts]


def _text(cfg: DataConfig, fetched: Fetched, work: Path) -> Facts:
    report = Report()
    found: list[Document] = []
    for language in LANGUAGES:
        budget = cfg.english_bytes if language == "en" else cfg.other_bytes
        found += read_language(language, fetched.packs, budget, report)
    documents = list(deduplicate(found, CLEANING, report, folder=work))
    if not documents:
        raise HerdError("the packages gave no text: run `herd data fetch` and see what it leaves out")
    splits = split_documents(documents, share=cfg.heldout, least_bytes=cfg.heldout_bytes)
    rows = [
        {
            "id": document.id,
            "split": splits[document.id],
            "language": document.language,
            "source": document.source,
            "text": document.text,
        }
        for document in documents
    ]
    tables.write(work / "text.parquet", rows, tables.TEXT)
    counts = {
        language: {split: {"documents": 0, "bytes": 0} for split in ("train", "heldout")} for language in LANGUAGES
    }
    for row in rows:
        count = counts[row["language"]][row["split"]]
        count["documents"] += 1
        count["bytes"] += len(row["text"].encode())
    return {"documents": counts, "dropped": dict(sorted(report.dropped.items())), "cleaning": report.as_json()}


def _books(cfg: DataConfig, fetched: Fetched, work: Path) -> Facts:
    rows = tables.read(work, "text", ["split", "text"])
    held = {line for row in rows if row["split"] == "heldout" for line in row["text"].split("\n") if line.strip()}
    found = books(fetched.packs, held)
    tables.write(work / "books.parquet", [asdict(book) for book in found], tables.BOOKS)
    return {"books": {book.source: {"bytes": len(book.text.encode())} for book in found}}


def _pictures(cfg: DataConfig, fetched: Fetched, work: Path) -> Facts:
    pictures = all_pictures(
        fetched.packs, longest_px=cfg.picture_px, heldout=cfg.heldout_subjects, heldout_pairs=cfg.heldout_pairs
    )
    if not pictures:
        raise HerdError("the packages gave no pictures: run `herd data fetch` and see what it leaves out")
    rows = [
        {**asdict(picture), "names": tables.to_json(picture.names), "captions": tables.to_json(picture.captions)}
        for picture in pictures
    ]
    tables.write(work / "pictures.parquet", rows, tables.PICTURES)
    counts = Counter((picture.source, picture.split) for picture in pictures)
    return {
        "pictures": {f"{source} {split}": count for (source, split), count in sorted(counts.items())},
        "picture_splits": HELD_OUT_SPLITS,
    }


def _clips(cfg: DataConfig, fetched: Fetched, work: Path) -> Facts:
    pictures = tables.read(work, "pictures", ["split", "names"])
    subjects = [spellings(json.loads(row["names"])) for row in pictures if row["split"] == "subjects"]
    found = clips(fetched.packs, num=cfg.clips, heldout=cfg.heldout_subjects, kept_back=set().union(*subjects))
    tables.write(
        work / "clips.parquet", [{**asdict(clip), "names": tables.to_json(clip.names)} for clip in found], tables.CLIPS
    )
    return {"clips": dict(sorted(Counter(clip.split for clip in found).items()))}


def _chats(cfg: DataConfig, fetched: Fetched, work: Path) -> Facts:
    pictures = [
        Picture(**{**row, "names": json.loads(row["names"]), "captions": json.loads(row["captions"])})
        for row in tables.read(work, "pictures", ["id", "split", "source", "subject", "names", "captions"])
    ]
    moving = [
        Clip(**{**row, "names": json.loads(row["names"])})
        for row in tables.read(work, "clips", ["id", "split", "subject", "names"])
    ]
    caps = Caps(
        names=cfg.names,
        captions=cfg.captions,
        flags=cfg.flags,
        capitals=cfg.capitals,
        sums=cfg.sums,
        tasks=cfg.tasks,
        dialogues=cfg.dialogues,
        clips=cfg.clip_names,
    )
    left_out: Counter[str] = Counter()
    chats = all_chats(
        fetched.packs, pictures, moving, caps, heldout=cfg.heldout_pairs, seed=cfg.seed, left_out=left_out
    )
    tables.write(work / "chats.parquet", [_chat_row(chat) for chat in chats], tables.CHATS)
    counts = Counter((chat.kind, chat.split) for chat in chats)
    return {
        "chats": {f"{kind} {split}": count for (kind, split), count in sorted(counts.items())},
        "chats_left_out": dict(sorted(left_out.items())),
    }


def _chat_row(chat: Chat) -> dict[str, Any]:
    return {**asdict(chat), "messages": tables.to_json(chat.messages)}


def _tokenizer(cfg: DataConfig, fetched: Fetched, work: Path) -> Facts:
    rows = tables.read(work, "text", ["split", "language", "text"])
    texts = {
        language: [row["text"] for row in rows if (row["split"], row["language"]) == ("train", language)]
        for language in LANGUAGES
    }
    chats = tables.read(work, "chats", ["split", "language", "answer"])
    pictures = tables.read(work, "pictures", ["split", "names"])
    names = [json.loads(row["names"]) for row in pictures if row["split"] == "train"]
    for language, own in texts.items():
        own += [row["answer"] for row in chats if (row["split"], row["language"]) == ("train", language)]
        # What the model is asked to say most often should be short in tokens.
        own[:0] = ["\n".join(sorted({name[language] for name in names if language in name}))] * NAMES_REPEATED
    tokenizer: Tokenizer = train_tokenizer(_balanced(texts), cfg.vocab_size)
    shutil.rmtree(work / "tokenizer", ignore_errors=True)
    shutil.rmtree(work / "tokenizer.tmp", ignore_errors=True)
    tokenizer.save(work / "tokenizer.tmp")
    os.replace(work / "tokenizer.tmp", work / "tokenizer")
    bytes_per_token = {}
    for language in LANGUAGES:
        held = [row["text"] for row in rows if (row["split"], row["language"]) == ("heldout", language)]
        tokens = sum(map(len, tokenizer.encode_batch(held)))
        bytes_per_token[language] = round(sum(len(text.encode()) for text in held) / tokens, 3) if tokens else None
    return {"tokenizer": {"vocab_size": tokenizer.vocab_size, "bytes_per_token": bytes_per_token}}


def _tokens(cfg: DataConfig, fetched: Fetched, work: Path) -> Facts:
    tokenizer = Tokenizer.load(work / "tokenizer")
    written = {
        table: TokenShards(write_shards(work, tokenizer, table=table, quiet=True)) for table in ("text", "books")
    }
    return {"tokens": {table: {"documents": len(t), "tokens": t.num_tokens} for table, t in written.items()}}


def _balanced(texts: dict[str, list[str]]) -> Iterator[str]:
    """The languages weighed by the square root of their size: small ones are repeated, a large one is cut.

    Sizes are in characters and not in bytes, or scripts of three bytes a letter would be learnt at a third.
    """
    sizes = {language: sum(map(len, own)) for language, own in texts.items() if own}
    median = sorted(sizes.values())[len(sizes) // 2]
    for language, size in sizes.items():
        wanted, given = int(max(size * median, median * median) ** 0.5), 0
        while given < wanted:
            for text in texts[language]:
                yield text
                given += len(text)
                if given >= wanted:
                    break


_STEPS: dict[str, Step] = {
    "text": _text,
    "books": _books,
    "pictures": _pictures,
    "clips": _clips,
    "chats": _chats,
    "tokenizer": _tokenizer,
    "tokens": _tokens,
}


def _source_facts(fetched: Fetched) -> list[Facts]:
    facts = []
    for source in SOURCES:
        pack = fetched.packs.get(source.name)
        facts.append(
            {
                "name": source.name,
                "client": source.client,
                "version": pack.version if pack else source.version,
                "sha256": pack.sha256 if pack else source.sha256,
                "licence": source.licence,
                "what": source.what,
                "status": "used" if pack else "missing",
                "reason": fetched.notes.get(source.name, "") if pack else fetched.missing[source.name],
                "bytes": source.bytes,
            }
        )
    return facts


def _left_out(fetched: Fetched) -> list[str]:
    return [
        *(f"{name}: {reason}" for name, reason in fetched.missing.items()),
        *(f"{name}: {reason}" for name, reason in LEFT_OUT.items()),
    ]
