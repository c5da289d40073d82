"""Where the tokens of a data folder are, for one tokenizer: found, or written where there are none yet."""

import os
from pathlib import Path

from herd.core.files import cache_folder, read_json
from herd.data.tokens.shard_writer import write_shards
from herd.data.tokens.shards import FOLDERS, FORMAT, MANIFEST, TokenShards, open_table, table_hash, tokenizer_hash
from herd.data.tokens.tokenizer import Tokenizer


def shard_folders(folder: Path, table: str, tokenizer: Tokenizer) -> list[Path]:
    """Where the tokens of a table may be: of the folder's own tokenizer, of this one beside them, in the cache."""
    own, key = FOLDERS[table], tokenizer_hash(tokenizer)
    text = table_hash(folder / f"{table}.parquet")
    return [folder / own, folder / f"{own}-{key}", cache_folder() / "tokens" / f"{text}-{key}"]


def open_shards(folder: Path, tokenizer: Tokenizer, *, table: str = "text") -> TokenShards:
    """The tokens of a data folder's training documents, or of its books. What was not written with this tokenizer yet
    is written now: a line is printed, and later runs find it."""
    open_table(folder, table, [])
    key, text = tokenizer_hash(tokenizer), table_hash(folder / f"{table}.parquet")
    places = shard_folders(folder, table, tokenizer)
    for place in places:
        if (place / MANIFEST).exists():
            found = read_json(place / MANIFEST)
            if (found.get("format"), found.get("tokenizer"), found.get("table_hash")) == (FORMAT, key, text):
                return TokenShards(place)
    out = places[1] if os.access(folder, os.W_OK) else places[2]
    print(f"{folder} has no tokens of this tokenizer yet: they are written to {out} once")
    write_shards(folder, tokenizer, table=table, out=out)
    return TokenShards(out)
