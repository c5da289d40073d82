"""Mid-training batches: short pieces as before, and long documents whose length grows by stages.

A long sample is one document of the stage's length: text of one language in a row or a stretch of one book, the same
with passages of it quoted again at its end, or with quizzes planted in it (see herd.data.packages.planted), of which
only the answers are learnt. Nothing is packed across documents: each keeps its own positions from 0, and no attention
crosses its ends.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from herd.config import LANGUAGES, MidtrainConfig, PretrainConfig
from herd.core.batch import Batch
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.loading.pack import Sample, pack
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.text_plan import BlockTokens
from herd.data.media.image import ImageProcessor
from herd.data.packages import planted
from herd.data.packages.planted import Keys, Planter, Quiz, Values
from herd.data.packages.wordings import NAME
from herd.data.tokens.shard_folders import open_shards
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError

LANGUAGE_SHARE = 0.2
"""Share of the needles that are in another language than English."""
FEW_WORDS_SHARE = 0.5
"""Share of the documents of needles alone whose keys are made of few words, so that each has many that share one."""
PLANTED_SHARE = 0.8
"""Most of a document that facts and questions take."""
QUOTED = (16, 48)
"""Tokens of a quoted passage."""
FIRST_QUOTED = 4
"""First tokens of it, which the rest follows from: they are not learnt."""
ENGLISH_BYTES = 2**26
"""Text in which the words of keys and values are looked for."""
JOINT = "\n\n"
"""Between two documents of a long one."""
TAIL = 8
"""Last tokens of a document that may merge with it."""


def english_texts(folder: Path) -> list[str]:
    """Training documents in English: the first of them, up to ENGLISH_BYTES."""
    texts, size = list[str](), 0
    for row in tables.rows(folder / "text.parquet", ["split", "language", "text"]):
        if (row["split"], row["language"]) == ("train", "en"):
            texts.append(row["text"])
            size += len(row["text"])
            if size >= ENGLISH_BYTES:
                break
    return texts


def values_of(texts: Sequence[str], *, evaluation: bool) -> Values:
    """What stands for a value, of words for training or for evaluation."""
    words, names = planted.value_words(texts)
    return Values(words, names, evaluation=evaluation)


def evaluation_values(folder: Path) -> Values:
    """Values of words and names that no training sample has as a value."""
    return values_of(english_texts(folder), evaluation=True)


def evaluation_keys(folder: Path) -> Keys:
    """Keys that no training sample shows."""
    return Keys(planted.frequent_words(english_texts(folder)), evaluation=True)


class LanguageText:
    """The training documents of one language laid end to end, `JOINT` between them; read where it is asked for.

    Places are counted in tokens of the shards, in which a document has a beginning and an end instead.
    """

    def __init__(self, blocks: BlockTokens, group: int, tokenizer: Tokenizer) -> None:
        self.blocks, self.group, self.tokenizer = blocks, group, tokenizer
        self.ends_B = np.cumsum(blocks.tokens[group])
        self.tokens = int(self.ends_B[-1])
        self._end_of = lru_cache(2**16)(self._make_end)

    def _make_end(self, tail: tuple[int, ...]) -> list[int]:
        """The last tokens of a document, and the joint behind them: as one text, in which they may merge."""
        text = self.tokenizer.decode(list(tail))
        if self.tokenizer.encode(text) != list(tail):  # begins within a character or a word
            return [*tail, *self.tokenizer.encode(JOINT)]
        return self.tokenizer.encode(text + JOINT)

    def _documents(self, place: int) -> Iterator[np.ndarray]:
        """From the document at a place on, over and over."""
        shards, block = self.blocks.shards, int(np.searchsorted(self.ends_B, place, side="right"))
        skip = place - (int(self.ends_B[block - 1]) if block else 0)
        while True:
            for document in self.blocks.documents(self.group, np.array([block])).tolist():
                tokens = shards.tokens(document)
                if skip >= len(tokens):
                    skip -= len(tokens)
                    continue
                inner = tokens[1:-1].astype(np.int32)
                body, tail = inner[:-TAIL], inner[-TAIL:]
                yield np.concatenate([body, np.array(self._end_of(tuple(tail.tolist())), dtype=np.int32)])[skip:]
                skip = 0
            block = (block + 1) % self.blocks.num_blocks

    def stretch(self, place: int, length: int) -> np.ndarray:
        """`length` tokens, int32."""
        parts, size = [], 0
        for tokens in self._documents(place):
            parts.append(tokens)
            size += len(tokens)
            if size >= length:
                break
        return np.concatenate(parts)[:length]


class LongText:
    """Stretches of the training documents of a language, and of books; read from their token shards."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.words = planted.frequent_words(english_texts(folder))
        self.planter = Planter(tokenizer)
        shards = open_shards(folder, tokenizer)
        known = [*LANGUAGES, *sorted(set(shards.languages) - set(LANGUAGES))]
        languages = [language for language in known if language in shards.languages]
        blocks = BlockTokens(shards, [(None, shards.languages.index(language)) for language in languages])
        self.languages = {name: LanguageText(blocks, group, tokenizer) for group, name in enumerate(languages)}
        sizes = np.array([text.tokens for text in self.languages.values()], dtype=np.float64)
        self._shares = sizes / sizes.sum()
        self.longest = int(sizes.max(initial=0))
        self.left_out: dict[str, int] = {}
        """What of the data folder is not trained on, and how much of it."""

    def read_books(self, folder: Path, tokenizer: Tokenizer, longest: int) -> None:
        """Have `book` give stretches of up to `longest` tokens of the folder's books."""
        self._book_shards = open_shards(folder, tokenizer, table="books")
        sizes = np.diff(self._book_shards.offsets) - 2  # without the tokens of its beginning and end
        self.books = np.flatnonzero(sizes > longest)
        """The books that are long enough, by their place in the shards."""
        self._book_tokens = sizes[self.books]
        if short := len(sizes) - len(self.books):
            self.left_out[f"books of no more than {longest} tokens"] = short
        if not len(self.books):
            raise HerdError(
                f"{folder} has no book of {longest} tokens, {sizes.max(initial=0)} at most: shorten lengths or set "
                "book_share=0"
            )

    def book(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """A stretch of `length` tokens of a book; a book is as likely as it is long."""
        index = int(rng.choice(len(self.books), p=self._book_tokens / self._book_tokens.sum()))
        begin = 1 + int(rng.integers(0, int(self._book_tokens[index]) - length))
        return self._book_shards.tokens(int(self.books[index]), begin, begin + length).astype(np.int32)

    def window(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """A stretch of `length` tokens of one language, which is as likely as it has text."""
        text = list(self.languages.values())[rng.choice(len(self._shares), p=self._shares)]
        if text.tokens <= length:
            text = max(self.languages.values(), key=lambda text: text.tokens)
        return text.stretch(int(rng.integers(0, max(1, text.tokens - length))), length)


def draw_language(rng: np.random.Generator) -> str:
    """The language of a needle."""
    return LANGUAGES[int(rng.integers(len(LANGUAGES)))] if rng.random() < LANGUAGE_SHARE else "en"


def draw_quiz(rng: np.random.Generator, keys: Keys) -> list[Quiz]:
    """A quiz of any kind; some come several at a time."""
    kind, spoken = rng.random(), draw_language(rng)
    if kind < 0.3:
        return [planted.needle(rng, keys, spoken)]
    if kind < 0.7:
        return [planted.needle(rng, keys, spoken, decoys=int(rng.integers(1, 7)))]
    if kind < 0.76:
        return planted.multi_query(rng, keys)
    if kind < 0.8:
        return [planted.multi_value(rng, keys)]
    if kind < 0.88:
        return [planted.variable(rng, keys, hops=int(rng.integers(1, 3)))]
    if kind < 0.94:
        return [planted.table(rng, keys, rows=int(rng.integers(3, 9)))]
    if kind < 0.96:
        return [planted.counting(rng, keys)]
    if kind < 0.97:
        return [planted.ordering(rng, keys)]
    return [planted.aggregation(rng, keys, votes=int(rng.integers(6, 13)))]


class LongBatches:
    """Batches of mid-training; batch s is a function of (folder, config, s)."""

    unit = "tokens"

    def __init__(self, folder: Path, config: MidtrainConfig, tokenizer: Tokenizer, processor: ImageProcessor) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.text = LongText(folder, tokenizer)
        if self.text.longest <= max(config.lengths):
            raise HerdError(
                f"{folder} has {self.text.longest} tokens of one language at most, lengths={config.lengths} ask for "
                "more: make a larger data folder"
            )
        if config.book_share:
            self.text.read_books(folder, tokenizer, max(config.lengths))
        self.keys = Keys(self.text.words, evaluation=False)
        self.num_steps = max(1, config.num_tokens // config.batch_tokens)
        short = int(config.batch_tokens * config.short_share)
        self.replay: PretrainBatches | None = None
        if short:
            replay = PretrainConfig(
                seed=config.seed + 2,  # another order than pre-training's and fine-tuning's
                num_tokens=short * (self.num_steps + 1),
                batch_tokens=short,
                context=config.context,
                picture_share=config.picture_share,
            )
            self.replay = PretrainBatches(folder, replay, tokenizer, processor, questions=NAME)
        self._long_tokens = config.batch_tokens - short
        self.left_out = self.text.left_out | (self.replay.left_out if self.replay is not None else {})

    def length(self, step: int) -> int:
        """Tokens of the long documents of step `step`."""
        lengths = self.config.lengths
        return lengths[min(step * len(lengths) // self.num_steps, len(lengths) - 1)]

    def is_first(self, step: int) -> bool:
        """Whether the documents have the first of several lengths. All of them are single needles in English: finding
        by a key is learnt in one stroke, much sooner where nothing else is in the way."""
        return self.length(step) == self.config.lengths[0] < self.config.lengths[-1]

    def count(self, step: int) -> int:
        """Long documents of a step: now and then one, where one is more than a step's share of tokens."""
        length = self.length(step)
        return (step + 1) * self._long_tokens // length - step * self._long_tokens // length

    def document(self, step: int, index: int) -> Sample:
        """Long document `index` of step `step`."""
        config, length = self.config, self.length(step)
        rng = stream(config.seed, "long", step, index)
        of_book = config.book_share > 0 and rng.random() < config.book_share  # no draw where there are none
        text = (self.text.book if of_book else self.text.window)(length, rng)
        kind = 1.0 if self.is_first(step) else rng.random()
        if kind < config.plain_share:
            ids = np.concatenate([[self.tokenizer.ids.bos], text[:-1]])
            return Sample(ids=ids, learnt=np.ones(len(ids), dtype=bool), kind="text")
        if kind < config.plain_share + config.quote_share:
            ids, learnt = self._quoting(text[:-1], rng)
        else:
            first = self.is_first(step)
            if first or rng.random() < config.needle_share:
                quizzes = self._needles(length, rng, first=first)
            else:
                quizzes = self._quizzes(length, rng)
            document = self.text.planter.plant(quizzes, self.text.planter.filler(text), length, rng)
            ids, learnt = document.ids, document.learnt
        return Sample(ids=ids, learnt=learnt, kind="planted", weight=config.answer_weight)

    def _quoting(self, text: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Text whose last part quotes passages of its first."""
        line = self.text.planter.encode("\n")
        count = int(rng.integers(1, max(2, min(self.config.most_questions, len(text) // 256) + 1)))
        body = len(text) - count * (QUOTED[1] + len(line))
        parts, learnt = [np.array([self.tokenizer.ids.bos]), text[:body]], [np.zeros(1 + body)]
        for _ in range(count):
            size = int(rng.integers(*QUOTED))
            begin = int(rng.integers(0, body - size))
            parts += [np.array(line), text[begin : begin + size]]
            learnt += [np.zeros(len(line) + FIRST_QUOTED), np.ones(size - FIRST_QUOTED)]
        return np.concatenate(parts).astype(np.int32), np.concatenate(learnt)

    def _needles(self, length: int, rng: np.random.Generator, *, first: bool) -> list[Quiz]:
        """Single needles, each asked for; at `first` as many as fit, and all in English."""
        most = min(self.config.most_questions, length // 32)
        wanted = most if first else int(rng.integers(1, max(2, most + 1)))
        keys = self.keys
        if not first and rng.random() < FEW_WORDS_SHARE:
            few = min(len(keys.words), max(8, int(3 * (length / 40) ** 0.5)))  # ten times the keys that fit
            keys = Keys([keys.words[int(i)] for i in rng.choice(len(keys.words), few, replace=False)], evaluation=False)
        asked: dict[str, Quiz] = {}
        room = PLANTED_SHARE * length
        while len(asked) < wanted:
            quiz = planted.needle(rng, keys, "en" if first else draw_language(rng))
            room -= self.text.planter.size(quiz)
            if room < 0 and asked:
                break
            asked[quiz.question] = quiz  # two answers to one question would be no question
        return list(asked.values())

    def _quizzes(self, length: int, rng: np.random.Generator) -> list[Quiz]:
        """As many quizzes as are drawn and fit."""
        wanted = int(rng.integers(1, max(2, min(self.config.most_questions, length // 32) + 1)))
        quizzes: list[Quiz] = []
        room = PLANTED_SHARE * length
        while len(quizzes) < wanted:
            more = draw_quiz(rng, self.keys)
            room -= sum(self.text.planter.size(quiz) for quiz in more)
            if room < 0 and quizzes:
                break
            quizzes += more
        return quizzes

    def batch(self, step: int) -> Batch:
        """The batch of step `step`."""
        samples = self.replay.samples(step) if self.replay is not None and step < self.replay.num_steps else []
        samples += [self.document(step, index) for index in range(self.count(step))]
        return pack(samples, patch_id=self.tokenizer.ids.patch)
