"""Questions about facts that are planted in real text: what a long context is trained and tried on.

A `Quiz` is pure text: facts to be planted, a question, the answer that continues it. `Planter.plant` lays facts into
real tokens, at ends of lines or sentences, and asks at the end; several quizzes may share one text. Keys are held out
by their hash: an evaluation asks for keys that no training sample has shown. The kinds follow RULER (arXiv 2404.06654)
in purpose, not in wording. Left out: anything that needs more than the text in front.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from herd.data.packages.statements import CLOSINGS, KINDS, OPENINGS, Wordings
from herd.data.text.splits import held_out
from herd.data.tokens.tokenizer import Tokenizer

HELD_KEYS = 0.2
"""Share of all keys, and of the words and names that are values, that are for evaluation only."""
EASY = 0.4
"""How often a question of the training is the fact's words up to its value, or the key alone: learnt sooner."""
ADORNED = 0.25
"""How often a statement of the training has an opening, and how often a closing."""

SAYINGS: dict[str, tuple[str, ...]] = {
    "en": ("The secret number of {key} is {value}.", "The code of {key} is {value}."),
    "de": ("Die geheime Zahl von {key} ist {value}.", "Der Code von {key} ist {value}."),
    "fr": ("Le nombre secret de {key} est {value}.", "Le code de {key} est {value}."),
    "es": ("El número secreto de {key} es {value}.", "El código de {key} es {value}."),
    "it": ("Il numero segreto di {key} è {value}.", "Il codice di {key} è {value}."),
    "pt": ("O número secreto de {key} é {value}.", "O código de {key} é {value}."),
    "id": ("Nomor rahasia {key} adalah {value}.", "Kode {key} adalah {value}."),
    "vi": ("Số bí mật của {key} là {value}.", "Mã của {key} là {value}."),
    "ru": ("Тайное число {key}: {value}.", "Код {key}: {value}."),
    "ja": ("{key} の秘密の番号は {value}。", "{key} のコードは {value}。"),
    "zh": ("{key} 的秘密号码是 {value}。", "{key} 的代码是 {value}。"),
    "hi": ("{key} का गुप्त अंक {value}.", "{key} का कोड {value}."),
    "ar": ("الرقم السري {key} هو {value}.", "رمز {key} هو {value}."),
}
"""How a fact is said in each language; a question repeats the words up to the value."""


@dataclass(frozen=True, kw_only=True)
class Quiz:
    """Facts, and one question about them."""

    kind: str
    facts: tuple[str, ...]
    """Planted in this order, at places drawn apart; the first is what the answer rests on. None where the text itself
    is asked about."""
    question: str
    answer: str
    """What continues the question; a correct continuation begins with it."""
    several: tuple[str, ...] = ()
    """Where any order will do: the parts that the answer must hold."""
    options: tuple[str, ...] = ()
    """Where an answer is chosen and not said: all that stand to choose from, `answer` among them."""
    key: str = ""
    """Whom a needle is about."""


class Values:
    """Draws values of the kinds in `statements`, of words and names for training or for evaluation alone."""

    def __init__(self, words: Sequence[str], names: Sequence[str], *, evaluation: bool) -> None:
        self.words, self.names = (
            [one for one in ones if held_out("planted value", one, share=HELD_KEYS) == evaluation]
            for ones in (words, names)
        )

    def draw(self, kind: str, rng: np.random.Generator) -> str:
        if kind == "five digits":
            return number(rng)
        if kind == "other number":
            digits = int(rng.choice([3, 4, 6, 7, 8]))
            return str(rng.integers(10 ** (digits - 1), 10**digits))
        words = self.names if kind == "name" else self.words
        count = {"word": 1, "name": 2, "phrase": int(rng.integers(2, 4))}[kind]
        return " ".join(words[int(i)] for i in rng.integers(len(words), size=count))


class Keys:
    """Draws names of two words, those for training and those for evaluation apart."""

    def __init__(self, words: Sequence[str], *, evaluation: bool) -> None:
        self.words, self.evaluation = words, evaluation

    def draw(self, rng: np.random.Generator) -> str:
        while True:
            key = " ".join(self.words[int(i)] for i in rng.integers(len(self.words), size=2))
            if held_out("planted key", key, share=HELD_KEYS) == self.evaluation:
                return key

    def near(self, key: str, rng: np.random.Generator) -> str:
        """Another key that shares a word with `key`."""
        first, second = key.split(" ")
        while True:
            other = self.words[int(rng.integers(len(self.words)))]
            near = f"{other} {second}" if rng.random() < 0.5 else f"{first} {other}"
            if near != key and held_out("planted key", near, share=HELD_KEYS) == self.evaluation:
                return near


def frequent_words(texts: Sequence[str], count: int = 4000) -> list[str]:
    """The words of 4 to 9 small Latin letters that stand most often in `texts`."""
    seen: dict[str, int] = {}
    for text in texts:
        for word in text.split():
            if 4 <= len(word) <= 9 and word.isascii() and word.isalpha() and word.islower():
                seen[word] = seen.get(word, 0) + 1
    return sorted(seen, key=lambda word: (-seen[word], word))[:count]


def value_words(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of 4 to 10 Latin letters that stand at least twice in `texts`: small ones, and those always large."""
    seen = Counter(word for text in texts for word in text.split() if 4 <= len(word) <= 10)
    known = [word for word, count in seen.items() if count >= 2 and word.isascii() and word.isalpha()]
    small = sorted(word for word in known if word.islower())
    return small, sorted(word for word in known if word.istitle() and word.lower() not in seen)


def number(rng: np.random.Generator) -> str:
    return str(rng.integers(10_000, 100_000))


def ask(saying: str, key: str) -> str:
    """The question that ends where the value stands."""
    return "\n" + saying.split("{value}")[0].rstrip().format(key=key)


def needle(rng: np.random.Generator, keys: Keys, language: str = "en", *, decoys: int = 0, near: float = 0.5) -> Quiz:
    """One fact and as many `decoys`: other keys in the same words, of which the share `near` have a word in common."""
    saying = SAYINGS[language][rng.integers(len(SAYINGS[language]))]
    key, value = keys.draw(rng), number(rng)
    others = [keys.near(key, rng) if rng.random() < near else keys.draw(rng) for _ in range(decoys)]
    facts = [saying.format(key=one, value=number(rng)) for one in others if one != key]
    kind = "single" if not decoys else "multi-key"
    tail = saying.split("{value}")[1]
    return Quiz(
        kind=kind, facts=(saying.format(key=key, value=value), *facts), question=ask(saying, key),
        answer=f" {value}{tail}", key=key,
    )  # fmt: skip


def statement(
    rng: np.random.Generator,
    keys: Keys,
    values: Values,
    wordings: Wordings,
    *,
    kind: str,
    wording: int | None = None,
    decoys: int = 0,
    adorned: float = 0.0,
    easy: float = 0.0,
) -> Quiz:
    """A fact in one of the wordings, drawn if not given, and a question in other words; the answer is the value.

    `decoys` say the same of other keys, half of which share a word with the key. With the chance `adorned` the fact has
    an opening, a closing, and the question an opening. With the chance `easy` the question is the fact's words up to
    its value, or the key alone.
    """
    said, asked = wordings.pairs[int(rng.integers(len(wordings.pairs))) if wording is None else wording]
    if rng.random() < easy:
        before = said.split("{value}")[0].rstrip()
        asked = before if "{key}" in before and rng.random() < 0.5 else "{key}:"
    nouns = wordings.nouns[kind]
    noun, key, value = nouns[int(rng.integers(len(nouns)))], keys.draw(rng), values.draw(kind, rng)
    others = [keys.near(key, rng) if rng.random() < 0.5 else keys.draw(rng) for _ in range(decoys)]

    def any_of(ways: Sequence[str]) -> str:
        a, b = (keys.words[int(i)] for i in rng.integers(len(keys.words), size=2))
        return ways[int(rng.integers(len(ways)))].format(a=a, b=b)

    def say(key: str, value: str) -> str:
        text = said.format(key=key, value=value, noun=noun)
        if rng.random() < adorned:
            text = any_of(OPENINGS) + text
        return text[:-1] + any_of(CLOSINGS) if rng.random() < adorned else text

    facts = [say(key, value), *(say(one, values.draw(kind, rng)) for one in others if one != key)]
    opening = any_of(OPENINGS) if rng.random() < adorned else ""
    return Quiz(
        kind=kind, facts=tuple(facts), question=f"\n{opening}{asked.format(key=key, noun=noun)}",
        answer=f" {value}.", key=key,
    )  # fmt: skip


def any_statement(
    rng: np.random.Generator, keys: Keys, values: Values, wordings: Wordings, *, decoys: int = 0, easy: float = EASY
) -> Quiz:
    """A fact of any kind, as the training has it."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    return statement(rng, keys, values, wordings, kind=kind, decoys=decoys, adorned=ADORNED, easy=easy)


def multi_query(rng: np.random.Generator, keys: Keys, *, count: int = 3) -> list[Quiz]:
    """Several facts, each asked for in turn."""
    return [needle(rng, keys, decoys=0) for _ in range(count)]


def multi_value(rng: np.random.Generator, keys: Keys, *, count: int = 2) -> Quiz:
    """One key with several values, all asked for."""
    saying, key = "A number of {key} is {value}.", keys.draw(rng)
    values = [number(rng) for _ in range(count)]
    facts = tuple(saying.format(key=key, value=value) for value in values)
    shuffled = [values[i] for i in rng.permutation(count)]
    return Quiz(
        kind="multi-value", facts=facts, question=f"\nThe numbers of {key} are",
        answer=f" {', '.join(shuffled)}.", several=tuple(values),
    )  # fmt: skip


def variable(rng: np.random.Generator, keys: Keys, *, hops: int = 2) -> Quiz:
    """A chain of names, the last of which has a number; the answer goes along the chain."""
    names = [keys.draw(rng) for _ in range(hops + 1)]
    value = number(rng)
    links = [f"{a} is the same as {b}." for a, b in pairwise(names)]
    steps = "".join(f" {b}. {b} is the same as" for b in names[1:])
    facts = (*links, f"{names[-1]} is the same as {value}.")
    return Quiz(kind="variable", facts=facts, question=f"\n{names[0]} is the same as", answer=f"{steps} {value}.")


def table(rng: np.random.Generator, keys: Keys, *, rows: int = 12) -> Quiz:
    """Lines of names and numbers in one block, one of which is asked for."""
    pairs = [(keys.draw(rng), number(rng)) for _ in range(rows)]
    key, value = pairs[rng.integers(rows)]
    block = "\n".join(["List:", *(f"{k}: {v}" for k, v in pairs)])
    return Quiz(kind="table", facts=(block,), question=f"\nIn the list, {key}:", answer=f" {value}\n")


def counting(rng: np.random.Generator, keys: Keys, *, most: int = 5) -> Quiz:
    """How often something is said."""
    key, count = keys.draw(rng), int(rng.integers(1, most + 1))
    return Quiz(
        kind="counting", facts=(f"Here stands {key}.",) * count, question=f"\nHow often stands {key}:",
        answer=f" {count}.",
    )  # fmt: skip


def aggregation(rng: np.random.Generator, keys: Keys, *, votes: int = 12) -> Quiz:
    """Which of three names has most votes."""
    names = [keys.draw(rng) for _ in range(3)]
    most = votes // 2
    counts = [most, (votes - most) * 2 // 3, votes - most - (votes - most) * 2 // 3]
    facts = [f"A vote for {name}." for name, count in zip(names, counts, strict=True) for _ in range(count)]
    facts = [facts[i] for i in rng.permutation(len(facts))]
    return Quiz(kind="aggregation", facts=tuple(facts), question="\nMost votes are for", answer=f" {names[0]}.")


def ordering(rng: np.random.Generator, keys: Keys) -> Quiz:
    """Which of two things came first."""
    first, second = keys.draw(rng), keys.draw(rng)
    shown = (first, second) if rng.random() < 0.5 else (second, first)
    return Quiz(
        kind="ordering", facts=(f"Now comes {first}.", f"Now comes {second}."),
        question=f"\nOf {shown[0]} and {shown[1]} the first was", answer=f" {first}.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Filler:
    """Real tokens to plant in, and the places where a line or a sentence ends."""

    ids: np.ndarray
    ends: np.ndarray
    """Sorted indices after which a fact may stand."""


class Planter:
    """Turns quizzes into tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        self.ends_text = np.array([text.rstrip(" ").endswith((".", "\n", "。", "।")) for text in texts])

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def size(self, quiz: Quiz) -> int:
        """Tokens of a quiz, its facts, question and answer."""
        return sum(len(self.encode(text)) for text in (*quiz.facts, quiz.question, quiz.answer)) + len(quiz.facts)

    def filler(self, ids: np.ndarray) -> Filler:
        return Filler(ids=ids, ends=np.flatnonzero(self.ends_text[ids]) + 1)

    def plant(
        self,
        quizzes: Sequence[Quiz],
        filler: Filler,
        length: int,
        rng: np.random.Generator,
        *,
        begin: int = 0,
        depth: float | None = None,
    ) -> "Planted":
        """A document of at most `length` tokens: filler from token `begin` on with all facts, then the questions.

        `depth` (0 to 1) is where the first fact of the first quiz stands; the others lie anywhere.
        """
        tail: list[int] = []
        weights: list[float] = []
        spans: list[tuple[int, int]] = []
        for quiz in quizzes:
            question, answer = self.encode(quiz.question), self.encode(quiz.answer)
            tail += question
            spans.append((len(tail), len(tail) + len(answer)))
            tail += answer
            weights += [0.0] * len(question) + [1.0] * len(answer)
        facts = [self.encode(f" {fact}") for quiz in quizzes for fact in quiz.facts]
        room = length - 1 - len(tail) - sum(map(len, facts))
        assert room > 0, f"{length} tokens are too few for {len(facts)} facts"
        room = min(room, len(filler.ids) - begin)
        places = rng.random(len(facts))
        if depth is not None:
            places[0] = depth
        place = 0
        for quiz in quizzes:  # the facts of one quiz keep their order
            mine = slice(place, place + len(quiz.facts))
            if depth is None or place:
                places[mine] = np.sort(places[mine])
            place += len(quiz.facts)
        ends = filler.ends
        low, high = np.searchsorted(ends, begin), np.searchsorted(ends, begin + room, side="right")
        choice = ends[low:high] if high > low else np.array([begin + room])
        at = np.searchsorted(choice, begin + places * room).clip(max=len(choice) - 1)
        cuts = choice[at]
        order = np.argsort(cuts, kind="stable")
        parts: list[np.ndarray] = [np.array([self.tokenizer.ids.bos], dtype=np.int32)]
        where, done = np.zeros(len(facts), dtype=np.int64), begin
        size = 1
        for index in order:
            parts.append(filler.ids[done : cuts[index]])
            size += cuts[index] - done
            where[index] = size
            parts.append(np.array(facts[index], dtype=np.int32))
            size += len(facts[index])
            done = int(cuts[index])
        parts.append(filler.ids[done : begin + room])
        size += begin + room - done
        parts.append(np.array(tail, dtype=np.int32))
        return Planted(
            ids=np.concatenate(parts).astype(np.int32),
            learnt=np.concatenate([np.zeros(size), weights]),
            answers=tuple((size + a, size + b) for a, b in spans),
            facts_at=where,
        )


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A document with its questions and their answers at the end."""

    ids: np.ndarray
    learnt: np.ndarray
    """1 for tokens of answers."""
    answers: tuple[tuple[int, int], ...]
    """Where each quiz's answer stands."""
    facts_at: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Where each fact begins, in the order of the quizzes."""
