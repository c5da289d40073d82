"""A small data folder and a made-up model whose right figures are known: it names pictures by their colour."""

import io
import json
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from herd.config import EvaluateConfig
from herd.core.files import write_json
from herd.engine.answer import Piece

LANGUAGES = ("en", "de", "ru")
QUESTIONS = {"en": "What is this?", "de": "Was ist das?", "ru": "Что это?"}
CONFIG = EvaluateConfig(languages=LANGUAGES, heldout_bytes=300, pictures=12, closed_pictures=12, candidates=16, chats=9)


def colour(index: int) -> tuple[int, int, int]:
    return (10 * index % 256, 37 * index % 256, 101 * index % 256)


def png(index: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 16), colour(index)).save(out, "PNG")
    return out.getvalue()


def name(index: int, language: str) -> str:
    """`thing 3 en`: every word but the first shows the language."""
    return f"{language}{index}thing {language}"


def picture_rows() -> list[dict[str, Any]]:
    splits = ["train"] * 20 + ["subjects"] * 20 + ["styles"] * 20
    rows = []
    for index, split in enumerate(splits):
        # A style has the subject, and the name, of a training picture; a new subject has a name of its own.
        subject = index - 40 if split == "styles" else index
        names = {language: name(subject, language) for language in LANGUAGES}
        rows.append({"id": f"p{index}", "split": split, "names": json.dumps(names), "png": png(index)})
    return rows


def chat_row(number: int, kind: str, language: str, split: str, content: Any, answer: str) -> dict[str, Any]:
    messages = json.dumps([{"role": "user", "content": content}])
    key = f"{kind}-{language}-{split}-{number}"
    return {"id": key, "split": split, "kind": kind, "language": language, "messages": messages, "answer": answer}


def with_reply(row: dict[str, Any]) -> dict[str, Any]:
    """The chat with a turn of the assistant."""
    messages = [*json.loads(row["messages"]), {"role": "assistant", "content": "hi"}]
    return row | {"messages": json.dumps(messages)}


def add_chats(data: Path, rows: list[dict[str, Any]]) -> None:
    """Write more rows to the folder's chats."""
    path = data / "chats.parquet"
    before = parquet.read_table(path).to_pylist() if path.exists() else []
    parquet.write_table(pa.Table.from_pylist([*before, *rows]), path)


def chat_rows() -> list[dict[str, Any]]:
    row, rows = chat_row, []
    for language in LANGUAGES:
        for number in range(4):
            picture = [{"type": "image", "picture": f"p{number}"}, {"type": "text", "text": QUESTIONS[language]}]
            rows.append(row(number, "name", language, "train", picture, name(number, language)))
            rows.append(with_reply(row(number, "chat", language, "heldout", f"hello {number} {language}", "")))
            rows.append(row(number, "capital", language, "heldout", f"capital {number}?", f"C{number}"))
            for split in ("train", "heldout"):
                rows.append(row(number, "arithmetic", language, split, f"{number} - 2 =", str(number - 2)))
    rows += [row(10 + k, "capital", "en", "train", f"capital of {k}?", "C0") for k in range(3)]
    return rows


def write_data(folder: Path) -> Path:
    """A data folder as the data stage leaves it."""
    folder.mkdir()
    texts = [
        {"id": f"{split}{language}{k:02}", "split": split, "language": language, "text": f"{language} text {k}. " * 8}
        for split, count in (("train", 12), ("heldout", 4))
        for language in ("de", "en")
        for k in range(count)
    ]
    for table, rows in (("text", texts), ("pictures", picture_rows()), ("chats", chat_rows())):
        parquet.write_table(pa.Table.from_pylist(rows), folder / f"{table}.parquet")
    card = {
        "sources": [
            {"name": "wiki", "client": "pip", "version": "1.0", "licence": "CC BY-SA", "what": "text", "status": "used",
             "bytes": 9},
            {"name": "stamps", "client": "apt", "version": "2", "licence": "GPL-2", "what": "pictures",
             "status": "missing", "reason": "no apt-get here", "bytes": None},
        ],
        "documents": {"en": {"train": {"documents": 12, "bytes": 900}, "heldout": {"documents": 4, "bytes": 300}}},
        "dropped": {"too short": 3},
        "tokenizer": {"vocab_size": 258, "bytes_per_token": {"en": 1.0}},
        "left_out": ["jokes: adult humour"],
    }  # fmt: skip
    write_json(folder / "herd.json", lineage("data", card=card))
    return folder


def lineage(stage: str, **facts: Any) -> dict[str, Any]:
    return {
        "stage": stage, "herd_version": "0", "commit": "abc", "finished": "2026-01-01T00:00:00Z", "time_s": 12.5,
        "peak_memory_bytes": 2**30, "parents": {}, "config": {}, "hash": f"{stage}-hash", **facts,
    }  # fmt: skip


class Tokenizer:
    """Bytes, and two special tokens."""

    vocab_size = 258
    ids = SimpleNamespace(bos=256, eot=257)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    token_ids: list[int]
    language: str = ""
    shown: int | None = None
    text: str = ""


class Model:
    """Knows every picture of `known` by its colour; answers the others, and all else, with a wrong word."""

    def __init__(self, known: Sequence[int]) -> None:
        self.tokenizer = Tokenizer()
        self.config = SimpleNamespace(max_positions=4096, special=SimpleNamespace(bos=256))
        self.processor = SimpleNamespace(reads_pictures=True)
        self.known = set(known)
        self.asked = 0
        self._index = {colour(index): index for index in range(60)}

    max_model_len = 4096

    def engine(self, **_: int) -> "Model":
        return self

    def prompt_of_text(self, text: str) -> Prompt:
        return Prompt(token_ids=[256, *self.tokenizer.encode(text)])

    def close(self) -> None:
        pass

    def render(self, messages: list[dict[str, Any]], *, tools: list[Any]) -> Prompt:
        content = messages[-1]["content"]
        if isinstance(content, str):
            return Prompt(token_ids=[256, *self.tokenizer.encode(content)], text=content)
        [image] = [part["image"] for part in content if part["type"] == "image"]
        [text] = [part["text"] for part in content if part["type"] == "text"]
        language = next(language for language, question in QUESTIONS.items() if question == text)
        return Prompt(token_ids=[256], language=language, shown=self._index[image.getpixel((0, 0))])

    def answer(self, prompt: Prompt) -> str:
        self.asked += 1
        if prompt.shown is None:
            return prompt.text.removesuffix(" - 2 =") if "=" in prompt.text else "C0"
        shown = prompt.shown - 40 if prompt.shown >= 40 else prompt.shown
        if prompt.shown in self.known:
            return f"The {name(shown, prompt.language)}!" if prompt.language == "en" else name(shown, prompt.language)
        return name(0, "en")

    async def generate(self, prompt: Prompt, params: Any, **_: str) -> AsyncIterator[Piece]:
        yield Piece(text=self.answer(prompt), token_ids=[1], finish_reason="stop")


def render_messages(tokenizer: Tokenizer, _: Any, messages: list[dict[str, Any]], **__: bool) -> SimpleNamespace:
    """The bytes of all messages; those of the assistant are learnt."""
    ids, learnt = [256], [False]
    for message in messages:
        text = tokenizer.encode(message["content"])
        ids += text
        learnt += [message["role"] == "assistant"] * len(text)
    return SimpleNamespace(ids=ids, learnt=learnt)


def log_likelihoods(model: Model, items: list[tuple[Prompt, list[int]]]) -> list[float]:
    """High for the answer, the less the longer for others."""
    scores = []
    for prompt, ids in items:
        assert ids[-1] == 257
        said = bytes(ids[:-1]).decode()
        scores.append(-1.0 if said == model.answer(prompt).removeprefix("The ").rstrip("!") else -10.0 - len(said))
    return scores


def token_losses(model: Model, documents: list[list[int]], *, context: int) -> list[np.ndarray]:
    """One bit for each byte."""
    assert context <= model.config.max_positions
    return [np.full(len(document), math.log(2)) for document in documents]
