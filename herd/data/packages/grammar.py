"""Translation into a language that is in no training text, by its grammar: in the manner of MTOB (arXiv 2309.16575).

MTOB gives a model a linguist's grammar of Kalamang. That book is in no registry, so the languages here are made: words,
word order and endings are drawn, described in plain English with a few examples, and planted as one fact in the long
text.
The right translation is chosen among four sentences that differ by one rule or word each: chance is a quarter, which is
what the control without the grammar must fall to.
"""

from dataclasses import dataclass, replace

import numpy as np

from herd.data.packages.planted import Keys, Quiz

NOUNS = ("dog", "child", "woman", "fish", "tree", "king", "bird", "horse")
VERBS = ("see", "find", "carry", "follow")
ADJECTIVES = ("big", "old", "red", "good")
ORDERS = {
    "SOV": "who acts, what is acted on, what is done",
    "VSO": "what is done, who acts, what is acted on",
    "OVS": "what is acted on, what is done, who acts",
    "OSV": "what is acted on, who acts, what is done",
}
RULES = (
    "The order of words is: {order}. An adjective stands {where} its noun. Where there are many of a thing, its noun "
    "ends in {many}. What was done is told by the word {past} at the end of the sentence."
)
EXAMPLES = 6


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """The meaning of a sentence."""

    like: str
    actor: str
    verb: str
    other: str
    many: bool
    """Of the other."""
    past: bool

    @property
    def english(self) -> str:
        tense, number = "did" if self.past else "does", "many" if self.many else "one"
        return f"The {self.like} {self.actor} {tense} {self.verb} {number} {self.other}."


class Language:
    """One made language."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        words: list[str] = []
        while len(words) < len(NOUNS) + len(VERBS) + len(ADJECTIVES) + 3:
            word = "".join(
                f"{'ptkmnslrvzbdg'[rng.integers(13)]}{'aeiou'[rng.integers(5)]}" for _ in range(rng.integers(2, 4))
            )
            if word not in words:
                words.append(word)
        self.name, self.past, self.many = words[0].capitalize(), words[1], words[2][:2]
        self.words = dict(zip((*NOUNS, *VERBS, *ADJECTIVES), words[3:], strict=True))
        self.order = list(ORDERS)[rng.integers(len(ORDERS))]
        self.adjective_first = bool(rng.random() < 0.5)

    def grammar(self) -> str:
        """The whole book."""
        where = "before" if self.adjective_first else "after"
        words = [f"{english} is {word}" for english, word in self.words.items()]
        rules = RULES.format(order=ORDERS[self.order], where=where, many=self.many, past=self.past)
        examples = " ".join(f"'{one.english}' is '{self.say(one)}'." for one in (self.draw() for _ in range(EXAMPLES)))
        return f"A grammar of {self.name}. Words: {', '.join(words)}. Rules: {rules} Examples: {examples}"

    def draw(self) -> Meaning:
        rng = self.rng
        actor, other = rng.choice(NOUNS, size=2, replace=False)
        return Meaning(
            like=str(rng.choice(ADJECTIVES)), actor=str(actor), verb=str(rng.choice(VERBS)), other=str(other),
            many=bool(rng.random() < 0.5), past=bool(rng.random() < 0.5),
        )  # fmt: skip

    def say(self, said: Meaning, order: str = "") -> str:
        """The sentence in this language, in another order of words if one is given."""
        noun, like = self.words[said.actor], self.words[said.like]
        parts = {
            "S": f"{like} {noun}" if self.adjective_first else f"{noun} {like}",
            "O": self.words[said.other] + (self.many if said.many else ""),
            "V": self.words[said.verb],
        }
        return " ".join([*(parts[letter] for letter in order or self.order), *([self.past] if said.past else [])])

    def wrong(self, said: Meaning) -> tuple[str, str, str]:
        """Three translations with one mistake each: the order, who acts on whom, what is done. They are as long as the
        right one, so that without the grammar each is chosen as often."""
        orders = [order for order in ORDERS if order != self.order]
        swapped = replace(said, actor=said.other, other=said.actor)
        verbs = [verb for verb in VERBS if verb != said.verb]
        done = replace(said, verb=verbs[self.rng.integers(len(verbs))])
        return self.say(said, orders[self.rng.integers(len(orders))]), self.say(swapped), self.say(done)


def translation(rng: np.random.Generator, _: Keys) -> Quiz:
    """One sentence to be translated by a grammar."""
    language = Language(rng)
    book, said = language.grammar(), language.draw()
    options = tuple(f" '{text}'" for text in (language.say(said), *language.wrong(said)))
    question = f"\nIn {language.name}, '{said.english}' is"
    return Quiz(kind="translation", facts=(book,), question=question, answer=options[0], options=options)
