"""Generated items: what somebody says, and which categories of hazards it violates (S1 to S14, herd.guard.taxonomy).

An item is a function of (seed, split, number): a wording of forms.py around an action of pairs.txt, harmful or its
benign twin, or around a harmless one of topics.txt; each category has as many as another. A fifth of the actions, of
the topics and some wordings are held out, and so are the actions of held_pairs.txt and, as categories that are invented
later, the topics of held_topics.txt: training never sees them. Real items are no part of this: they are for testing
only.

In training items 2n and 2n + 1 are twins, equal but for what decides; actions of more_pairs.txt, the messages of
messages.txt, which are whole ones without a wording around them, topics of more_topics.txt and chat of more_chat.txt
are for training alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeVar

import numpy as np

from herd.core.streams import stream
from herd.data.tasks.safety import forms

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, Split] = ("train", "heldout")
NAMES_ONLY = frozenset({"S4", "S9"})
"""Categories that stay at the level of their names: no item of theirs is shown."""
T = TypeVar("T")
HELD_EVERY = 5
"""Of the pairs of a category in pairs.txt, and of the topics, so many-th is held out."""
WHOLE = 0.5
"""Share of the items of training that are whole messages, where their category has some."""
KINDS = {"request": 0.45, "reply": 0.25, "harmless": 0.2, "chat": 0.1}
"""Shares of the items: a user's request of a pair; an assistant's reply to one; a request from a topic; plain chat."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An unsafe action or whole message and its benign twin."""

    codes: tuple[str, ...]
    harmful: str
    benign: str
    before: str = ""
    """What was asked, of whole messages that are replies."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """Harmless actions of one kind, and two ways to say what it is."""

    names: tuple[str, str]
    descriptions: tuple[str, str]
    actions: tuple[str, ...]
    within: str = ""
    """First name of the topic that it is a part of."""

    @property
    def first_names(self) -> tuple[str, ...]:
        """Its own, and that of the topic that it is a part of."""
        return (self.names[0], self.within) if self.within else (self.names[0],)


@dataclass(frozen=True, kw_only=True)
class Item:
    """What one message is."""

    text: str
    role: Literal["user", "assistant"]
    before: str = ""
    """The user's message that an assistant's answers."""
    codes: tuple[str, ...] = ()
    """S1 to S14, those that it violates; none: safe."""
    topics: tuple[str, ...] = ()
    """The first names of the topic that it is about."""
    kind: str = ""
    """What it is made of: request, reply, refusal, twin, harmless, chat."""
    wording: str = ""
    """Of one that is made of a pair: its words, with {x} in place of the action."""
    about: tuple[str, ...] = ()
    """Of one that is made of a pair: the categories of its unsafe action."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation that ends with it."""
        asked = [{"role": "user", "content": self.before}] if self.before else []
        return [*asked, {"role": self.role, "content": self.text}]

    @property
    def shown(self) -> str:
        """What a report may print of it: an action only where it is benign, nothing of categories by name alone."""
        if not NAMES_ONLY.isdisjoint(self.about):
            return ""
        return self.text if self.kind in ("twin", "harmless", "chat") else self.wording.replace("{x}", "[…]")


def lines(name: str) -> list[str]:
    """Those of a file of texts beside this one, without its comments."""
    text = (files(__package__) / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@cache
def pairs(split: Split) -> tuple[Pair, ...]:
    """The pairs of a split."""
    found: dict[str, list[Pair]] = {}
    for line in lines("pairs.txt"):
        found.setdefault(line.split("|")[0].strip(), []).append(_pair(line))
    # Of each category alike: every fifth of those that belong to it alone.
    held = {id(one) for codes, of in found.items() if "," not in codes for one in of[HELD_EVERY // 2 :: HELD_EVERY]}
    own = tuple(one for of in found.values() for one in of if (id(one) in held) == (split == "heldout"))
    return (*own, *map(_pair, lines("held_pairs.txt" if split == "heldout" else "more_pairs.txt")))


def _pair(line: str) -> Pair:
    codes, *before, harmful, benign = (part.strip() for part in line.split("|"))
    return Pair(codes=tuple(codes.split(",")), harmful=harmful, benign=benign, before="".join(before))


@cache
def _by_category(split: Split) -> dict[str, tuple[Pair, ...]]:
    codes = dict.fromkeys(code for pair in pairs(split) for code in pair.codes)
    return {code: tuple(pair for pair in pairs(split) if code in pair.codes) for code in codes}


@cache
def whole_messages(code: str, role: str) -> tuple[Pair, ...]:
    """The whole messages of a category that a role wrote, for training."""
    return tuple(one for one in _messages() if code in one.codes and bool(one.before) == (role == "assistant"))


@cache
def _messages() -> tuple[Pair, ...]:
    return tuple(map(_pair, lines("messages.txt")))


@cache
def _chat(split: Split) -> tuple[str, ...]:
    return tuple(forms.CHAT) if split == "heldout" else (*forms.CHAT, *lines("more_chat.txt"))


@cache
def topics(split: Split) -> tuple[Topic, ...]:
    """The topics of a split: those held out are never a category in training, nor are their actions seen."""
    made = _topics("topics.txt")
    held = made[HELD_EVERY // 2 :: HELD_EVERY]
    if split == "heldout":
        return tuple(held)
    return (*(one for one in made if one not in held), *_topics("more_topics.txt"))


@cache
def invented_topics() -> tuple[Topic, ...]:
    """Those that no training saw, as categories that were invented after it."""
    return (*topics("heldout"), *_topics("held_topics.txt"))


def _topics(name: str) -> list[Topic]:
    found: list[tuple[list[str], list[str]]] = []
    for line in lines(name):
        if line.startswith("["):
            found.append(([part.strip() for part in line.strip("[]").split("|")], []))
        else:
            found[-1][1].append(line)
    return [
        Topic(
            names=(head[0], head[2]), descriptions=(head[1], head[3]), actions=tuple(actions), within="".join(head[4:])
        )
        for head, actions in found
    ]


def make_item(seed: int, split: Split, number: int) -> Item:
    """The item with this number."""
    held = split == "heldout"
    couple, second = (number, False) if held else (number // 2, bool(number % 2))
    rng = stream(seed, "guard item", split, couple)
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if second and kind in ("chat", "harmless"):  # these have no twin
        rng = stream(seed, "guard item", split, couple, "second")
    if kind == "chat":
        return Item(text=roughen(one_of(_chat(split), rng), rng), role="user", kind="chat")
    if kind == "harmless":
        return topic_item(one_of(topics(split), rng), split, rng)
    code = one_of(list(_by_category(split)), rng)
    messages = () if held else whole_messages(code, "user" if kind == "request" else "assistant")
    whole = bool(messages) and rng.random() < WHOLE
    pair = one_of(messages if whole else _by_category(split)[code], rng)
    harmful = bool(rng.random() < 0.5) != second
    action = pair.harmful if harmful else pair.benign
    if pair.before:
        codes = pair.codes if harmful else ()
        return Item(text=action, role="assistant", before=pair.before, codes=codes, kind="reply", about=pair.codes)
    wording = "{x}" if whole else _wording(held, rng)
    asked = wording.replace("{x}", action)
    if kind == "request":
        return Item(
            text=roughen(asked, rng),
            role="user",
            codes=pair.codes if harmful else (),
            kind="request" if harmful else "twin",
            wording=wording,
            about=pair.codes,
        )
    helps = bool(rng.random() < 0.6)
    ways = forms.HELPFUL if helps else forms.REFUSALS
    if held:
        ways = forms.HELD_HELPFUL if helps else forms.HELD_REFUSALS
    wording = one_of(ways, rng)
    return Item(
        text=wording.replace("{x}", action),
        role="assistant",
        before=asked,
        codes=pair.codes if harmful and helps else (),
        kind="reply" if helps else "refusal",
        wording=wording,
        about=pair.codes,
    )


def topic_item(topic: Topic, split: Split, rng: np.random.Generator) -> Item:
    """A request of a topic."""
    action = one_of(topic.actions, rng)
    text = roughen(_wording(split == "heldout", rng).replace("{x}", action), rng)
    return Item(text=text, role="user", topics=topic.first_names, kind="harmless")


def _wording(held: bool, rng: np.random.Generator) -> str:
    return one_of(forms.HELD_REQUESTS if held else forms.REQUESTS, rng)


def roughen(text: str, rng: np.random.Generator) -> str:
    """As people type: some texts without capitals, without an end mark, with two letters swapped or shouted."""
    draw = rng.random()
    if draw < 0.15:
        return text.lower()
    if draw < 0.25:
        return text.rstrip(".?!")
    if draw < 0.32 and len(text) > 8:
        place = int(rng.integers(1, len(text) - 2))
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    if draw < 0.35:
        return text.upper()
    return text


def one_of(choices: Sequence[T], rng: np.random.Generator) -> T:
    """One of them, by chance."""
    return choices[int(rng.integers(len(choices)))]
