"""Bits per byte of held-out text by language: the model beside xz and 5-gram models on the same documents."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.core.statistics import mean_interval
from herd.evaluate.compress import xz_bytes, xz_bytes_after
from herd.evaluate.ngram import KneserNey

if TYPE_CHECKING:
    from herd.data.tokens.tokenizer import Tokenizer
    from herd.engine.load import Model

Texts = Mapping[str, Sequence[str]]  # language → documents
CONTEXT = 512
"""Tokens of a held-out document that are read together, where the model has so many positions."""
BASELINES = {
    "xz": "xz -9",
    "xz_primed": "xz -9 after the training text",
    "byte_5gram": "the byte 5-gram",
    "token_5gram": "the 5-gram over its own tokens",
}
"""What the model is compared with, in words. All but the first need training text."""

BITS_RULE = (
    "Bits per UTF-8 byte of held-out documents, the same for all; every document is read from its beginning and its "
    "end is not predicted. xz -9: the size of a language's documents in a row, header included; after the training "
    "text: what they add to the file of the language's training text. 5-grams: interpolated modified Kneser-Ney, "
    "trained on exactly the training split of all languages, over bytes and over the model's own tokens. Interval of "
    "the model's: 95 %, percentile bootstrap over documents, in the last row over those of all languages, 1000 draws; "
    "none for a single document."
)


def cap_documents(documents: Sequence[str], max_bytes: int) -> list[str]:
    """The first documents up to `max_bytes` of UTF-8; the last one is cut between characters."""
    kept: list[str] = []
    left = max_bytes
    for document in documents:
        encoded = document.encode()
        if text := encoded[:left].decode(errors="ignore"):
            kept.append(text)
        left -= len(encoded)
        if left <= 0:
            break
    return kept


def train_baselines(
    train: Texts, held: Texts, tokenizer: "Tokenizer", done: Callable[[], None] = lambda: None
) -> dict[str, dict[str, float]]:
    """Bits that each baseline takes for the held-out documents: competitor → language → bits. Without training text
    xz alone.

    `done` is called as each of the jobs ends, 2 + languages at most. numpy's sorts and xz work outside Python's lock,
    so two threads keep two cores busy.
    """

    def by_bytes() -> dict[str, float]:
        model = KneserNey([_bytes(text) for texts in train.values() for text in texts], vocab_size=256)
        return {language: _bits(model.losses([_bytes(text) for text in texts])) for language, texts in held.items()}

    def by_tokens() -> dict[str, float]:
        def tokens(texts: Sequence[str]) -> list["np.ndarray[Any, Any]"]:
            return [np.array(ids, np.int64) for ids in tokenizer.encode_batch(list(texts))]

        seen = [document for texts in train.values() for document in tokens(texts)]
        model = KneserNey(seen, vocab_size=tokenizer.vocab_size)
        return {language: _bits(model.losses(tokens(texts))) for language, texts in held.items()}

    def by_xz(language: str) -> tuple[float, float]:
        seen, text = ("".join(texts.get(language, ())).encode() for texts in (train, held))
        return 8.0 * xz_bytes(text), 8.0 * xz_bytes_after(seen, text)

    with ThreadPoolExecutor(2) as pool:

        def start(job: Callable[..., Any], *arguments: Any) -> "Future[Any]":
            future = pool.submit(job, *arguments)
            future.add_done_callback(lambda _: done())
            return future

        grams = {"byte_5gram": start(by_bytes), "token_5gram": start(by_tokens)} if any(train.values()) else {}
        xz = {language: start(by_xz, language) for language in held}
        alone = {language: job.result()[0] for language, job in xz.items()}
        if not grams:
            return {"xz": alone}
        return {
            "xz": alone,
            "xz_primed": {language: job.result()[1] for language, job in xz.items()},
            **{name: job.result() for name, job in grams.items()},
        }


def model_bits(model: "Model", held: Texts, done: Callable[[int], None]) -> dict[str, list[float]]:
    """Bits that the model takes for each held-out document, by language; `done` is called after each language."""
    from herd.engine.score import token_losses

    bits = {}
    for language, texts in held.items():
        documents = model.tokenizer.encode_batch(list(texts))
        losses = token_losses(model, documents, context=min(CONTEXT, model.config.max_positions))
        bits[language] = [_bits([loss]) for loss in losses]
        done(1)
    return bits


def bits_table(
    model: Mapping[str, Sequence[float]], baselines: Mapping[str, Mapping[str, float]], held: Texts, *, seed: int
) -> dict[str, Any]:
    """Bits per byte of the model, with its interval over the documents, and of every baseline; by language and over all
    bytes."""

    def row(languages: Sequence[str]) -> dict[str, Any]:
        bits = [value for language in languages for value in model[language]]
        sizes = [len(text.encode()) for language in languages for text in held[language]]
        interval = mean_interval(bits, sizes, seed=seed) or (None, None)
        return {
            "documents": len(sizes),
            "bytes": sum(sizes),
            "model": sum(bits) / sum(sizes),
            **dict(zip(("model_low", "model_high"), interval, strict=True)),
            **{name: sum(values[one] for one in languages) / sum(sizes) for name, values in baselines.items()},
        }

    rows = [{"language": language, **row([language])} for language in held]
    return {"rule": BITS_RULE, "rows": rows, "all": row(list(held))}


def _bytes(text: str) -> "np.ndarray[Any, Any]":
    return np.frombuffer(text.encode(), np.uint8)


def _bits(losses: "Sequence[np.ndarray[Any, Any]]") -> float:
    return float(sum(loss.sum() for loss in losses)) / math.log(2)
