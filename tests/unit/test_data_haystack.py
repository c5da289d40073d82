"""The text that facts are planted in has nothing of what was trained on, whatever source that came from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folder import random_tokenizer

from herd.data.loading import tables
from herd.data.packages import haystack as module
from herd.data.packages.haystack import haystack
from herd.errors import HerdError

PARAGRAPHS = [[f"Title {number}", f"Paragraph {number} is about the number {number * 7}."] for number in range(9)]


def write(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    names = ("split", "source", "text")
    table: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in rows]
    folder.mkdir()
    tables.write(folder / "text.parquet", table, tables.TEXT)
    return folder


def test_paragraphs_that_are_trained_on_are_left_out_of_all_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "pack_of", lambda _: None)
    monkeypatch.setattr(module, "read_wikipedia", lambda *_: iter(PARAGRAPHS))
    tokenizer = random_tokenizer()
    data = write(
        tmp_path / "data",
        [
            ("train", module.SOURCE, "\n".join(PARAGRAPHS[0])),
            ("train", "mine", f"Before.\n{PARAGRAPHS[1][1]}\nAfter."),
            ("heldout", "mine", PARAGRAPHS[2][1]),
        ],
    )
    whole = "".join(f"{title}\n{text}\n\n" for title, text in PARAGRAPHS[2:])
    length = len(tokenizer.encode(whole))
    for _ in range(2):  # encoded, then from the cache
        ids = haystack(data, tokenizer, 40)
        assert np.array_equal(ids, tokenizer.encode(whole)[:40])
    with pytest.raises(HerdError, match="tokens of text that was not trained on"):
        haystack(data, tokenizer, 2 * length)
