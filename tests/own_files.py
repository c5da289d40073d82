"""Folders of a user's own for tests: files of all kinds, a data folder that is made of them, and what it has."""

import io
import json
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow
from PIL import Image

from herd.config import CleaningConfig, DataConfig
from herd.data.loading import tables
from herd.data.sources.detect import detect, sources_of
from herd.data.sources.source import Notes
from herd.stages.data import build_data

SWITCHES = {field.name: False for field in fields(CleaningConfig) if field.type is bool}
SIZES: dict[str, Any] = {"min_bytes": 0, "max_symbol_share": 1.0, "boilerplate_documents": 0, "near_duplicates": 0.0}
OFF = replace(CleaningConfig(), **{**SWITCHES, **SIZES, "mojibake": True, "exact_duplicates": True})
"""Filters that drop mojibake and duplicates alone: what is tested is reading."""
SEA = "The harbour was quiet when the ferry left for the islands."
GARDEN = "Der Garten hinter dem Haus gehört der Großmutter und ihren Bienen."


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


GOOD = turns(("user", "Where is the ferry?"), ("assistant", "In the harbour."))


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def arrow(*rows: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    table = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG")
    return out.getvalue()


def pdf() -> bytes:
    """A page that says "The harbour"."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>/MediaBox[0 0 200 200]>>",
        b"<</Length 41>>stream\nBT /F 12 Tf 20 100 Td (The harbour) Tj ET\nendstream",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(b"%010d 00000 n \n" % len(out))
        out += b"%d 0 obj" % number + body + b"endobj\n"
    table = b"xref\n0 6\n0000000000 65535 f \n" + b"".join(places)
    return out + table + b"trailer<</Root 1 0 R/Size 6>>\nstartxref\n%d\n%%%%EOF" % len(out)


def shows(picture: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "What is this?"}]
    return turns(("user", parts), ("assistant", "A red square."))


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def recipe(folder: Path) -> str:
    """A recipe whose filters are OFF, and whose tokenizer is trained in no time."""
    values = {name: getattr(OFF, name) for name in vars(OFF) if name not in {"languages", "mask"}}
    lines = [f"{name} = {str(value).lower()}" for name, value in values.items()]
    path = folder / "off.toml"
    path.write_text("[data]\nvocab_size = 300\n[data.cleaning]\n" + "\n".join(lines) + "\n")
    return str(path)


def said_in(out: Path) -> list[str]:
    """The documents and the last answers of a data folder."""
    texts = [row["text"] for row in tables.read(out, "text", ["text"])] if tables.has(out, "text") else []
    chats = tables.read(out, "chats", ["messages"]) if tables.has(out, "chats") else []
    return texts + [json.loads(row["messages"])[-1]["content"] for row in chats]


def build(folder: Path, out: Path, **options: Any) -> Path:
    """A data folder of what is found in `folder`."""
    found = sources_of(detect([str(folder)], Notes()))
    return build_data(DataConfig(**found, cleaning=OFF, vocab_size=300, **options), out)
