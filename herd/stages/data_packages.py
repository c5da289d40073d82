"""What the embedded packages give to a data folder: documents, books, pictures, clips and chats, and their facts."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from herd.config import LANGUAGES, DataConfig
from herd.data.loading import tables
from herd.data.loading.tables import Clip, Picture
from herd.data.packages.books import books
from herd.data.packages.dialogues import Caps, all_chats
from herd.data.packages.pictures import HELD_OUT_SPLITS, all_pictures, clips
from herd.data.packages.text import read_language
from herd.data.sources.fetch import Fetched
from herd.data.sources.package_list import LEFT_OUT, SOURCES
from herd.data.text.contamination import EvaluationIndex
from herd.data.text.documents import Document
from herd.data.text.report import Report
from herd.data.text.spelling import spellings
from herd.errors import HerdError

Facts = dict[str, Any]
PACKAGES = "packages"
"""What the packages' chats have as their source."""


def package_documents(cfg: DataConfig, fetched: Fetched, report: Report, evaluation: EvaluationIndex) -> list[Document]:
    """The packages' documents, filtered; duplicates are still among them."""
    found: list[Document] = []
    for language in LANGUAGES:
        budget = cfg.english_bytes if language == "en" else cfg.other_bytes
        found += read_language(language, fetched.packs, budget, report, evaluation)
    if not found:
        raise HerdError("the packages gave no text: run `herd data fetch` and see what it leaves out")
    return found


def write_books(fetched: Fetched, work: Path, evaluation: EvaluationIndex) -> Facts:
    """books.parquet: long texts, without the lines that are held out elsewhere and the pages with a passage of an
    evaluation set."""
    rows = tables.read(work, "text", ["split", "text"])
    held = {line for row in rows if row["split"] == "heldout" for line in row["text"].split("\n") if line.strip()}
    found = books(fetched.packs, held, evaluation)
    rows = [{name: getattr(book, name) for name in tables.BOOKS.names} for book in found]
    tables.write(work / "books.parquet", rows, tables.BOOKS)
    return {
        "books": {
            book.source: {"bytes": len(book.text.encode())}
            | {f"pages dropped for {name}": count for name, count in sorted(book.contaminated.items())}
            for book in found
        }
    }


def package_pictures(cfg: DataConfig, fetched: Fetched) -> tuple[list[dict[str, Any]], Facts]:
    """Rows of pictures.parquet."""
    pictures = all_pictures(
        fetched.packs, longest_px=cfg.picture_px, heldout=cfg.heldout_subjects, heldout_pairs=cfg.heldout_pairs
    )
    if not pictures:
        raise HerdError("the packages gave no pictures: run `herd data fetch` and see what it leaves out")
    rows = [
        {**asdict(picture), "names": tables.to_json(picture.names), "captions": tables.to_json(picture.captions)}
        for picture in pictures
    ]
    counts = Counter((picture.source, picture.split) for picture in pictures)
    return rows, {
        "pictures": {f"{source} {split}": count for (source, split), count in sorted(counts.items())},
        "picture_splits": HELD_OUT_SPLITS,
    }


def package_clips(cfg: DataConfig, fetched: Fetched, work: Path) -> tuple[list[dict[str, Any]], Facts]:
    """Rows of clips.parquet: animations that show nothing that is held out among the pictures."""
    pictures = tables.read(work, "pictures", ["split", "names"])
    subjects = [spellings(json.loads(row["names"])) for row in pictures if row["split"] == "subjects"]
    found = clips(fetched.packs, num=cfg.clips, heldout=cfg.heldout_subjects, kept_back=set().union(*subjects))
    rows = [{**asdict(clip), "names": tables.to_json(clip.names)} for clip in found]
    return rows, {"clips": dict(sorted(Counter(clip.split for clip in found).items()))}


def package_chats(cfg: DataConfig, fetched: Fetched, work: Path, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of chats.parquet, about the packages' pictures and clips."""
    own = tuple(f"{source.name}/" for source in cfg.sources)
    pictures = [
        Picture(**{**row, "names": json.loads(row["names"]), "captions": json.loads(row["captions"])})
        for row in tables.read(work, "pictures", ["id", "split", "source", "subject", "names", "captions"])
        if not row["id"].startswith(own)
    ]
    moving = [
        Clip(**{**row, "names": json.loads(row["names"])})
        for row in tables.read(work, "clips", ["id", "split", "subject", "names"])
        if not row["id"].startswith(own)
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
    for chat in all_chats(
        fetched.packs, pictures, moving, caps, heldout=cfg.heldout_pairs, seed=cfg.seed, left_out=left_out
    ):
        yield {**asdict(chat), "messages": tables.to_json(chat.messages), "source": PACKAGES, "tools": ""}


def package_facts(fetched: Fetched) -> list[Facts]:
    """The packages for the data card."""
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


def packages_left_out(fetched: Fetched) -> list[str]:
    """Packages that are missing or were examined and are not used."""
    return [
        *(f"{name}: {reason}" for name, reason in fetched.missing.items()),
        *(f"{name}: {reason}" for name, reason in LEFT_OUT.items()),
    ]
