"""Attacks and their benign twins, generated from the lists of attacks.toml, benign.toml and languages.toml.

A twin shares what is not decisive with an attack: the harmful request without the jailbreak around it, the role without
the broken rules, the quoted injection, the document without the injection in it, the encoded key.
"""

import base64
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from herd.guard.prompt_guard.evasions import EVASIONS

Rng = np.random.Generator
_SLOT = re.compile(r"\{(\w+)\}")
_CHOICE = re.compile(r"‹([^‹›]*)›")
CIPHERS = ("base64", "hexadecimal", "rot13", "reversed", "morse", "braille", "atbash")


@lru_cache(maxsize=4)
def phrases(name: str) -> dict[str, Any]:
    """A list of this folder."""
    return tomllib.loads(files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))


class Grammar:
    """Fills slots at random; with `heldout` only from every fifth top-level phrase, else from the others: phrases of
    validation are not those of training."""

    def __init__(self, rng: Rng, *, heldout: bool = False) -> None:
        self.rng, self.heldout = rng, heldout
        # What comes of a slot may hold slots, so it is filled until there is none; braces of a text are ❴ and ❵.
        self.slots: dict[str, list[str]] = phrases("attacks") | phrases("benign")

    def pick(self, options: Sequence[str]) -> str:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def option(self, slot: str) -> str:
        """A phrase of `slot`, of those held out or of the others."""
        options = self.slots[slot]
        return self.pick([one for at, one in enumerate(options) if (at % 5 == 4) is self.heldout] or options)

    def top(self, slot: str) -> str:
        """A phrase of `slot`, of those held out or of the others, filled."""
        return self.fill(self.option(slot))

    def fill(self, phrase: str) -> str:
        """With all slots replaced."""
        while _SLOT.search(phrase):
            phrase = _SLOT.sub(self._slot, phrase)
        return phrase.replace("❴", "{").replace("❵", "}")

    def _slot(self, match: re.Match[str]) -> str:
        name = match[1]
        if name == "hex":
            return self.rng.bytes(12).hex()
        if name == "b64":
            return base64.b64encode(self.rng.bytes(int(self.rng.integers(24, 90)))).decode()
        if name == "Goal":
            goal = self.pick(self.slots["goal"])
            return goal[0].upper() + goal[1:]
        if name not in self.slots:
            return name
        return self.pick(self.slots[name])

    def choices(self, phrase: str) -> str:
        """With each `‹a|b›` replaced by one of its parts, innermost first."""
        while _CHOICE.search(phrase):
            phrase = _CHOICE.sub(lambda match: self.pick(match[1].split("|")), phrase)
        return phrase


def _override(g: Grammar) -> str:
    text = g.fill(g.top("ignore") + " {prior} {rules}{then}.")
    return text[0].upper() + text[1:]


def _persona(g: Grammar) -> str:
    """A role-play jailbreak of two to twenty sentences, with one name throughout."""
    name = g.fill("{botname}")
    # What stays of {botname} is the same name in all sentences.
    slots, g.slots = g.slots, g.slots | {"botname": [name]}
    rules = [g.top("rule") for _ in range(int(g.rng.choice([0, 1, 2, 4, 8, 12, 16])))]
    if g.rng.random() < 0.2:
        rules = [f"{number}. {rule}" for number, rule in enumerate(rules, 1)]
    parts = [g.top("opening"), *dict.fromkeys(rules)]
    parts += [g.top("format")] * int(g.rng.random() < 0.6) + [g.top("suppress")] * int(g.rng.random() < 0.3)
    parts += [g.top("closing")]
    g.slots = slots
    return g.pick([" ", " ", "\n", "\n\n"]).join(part for part in parts if part)


def _wrapped(slot: str) -> Callable[[Grammar], str]:
    def make(g: Grammar) -> str:
        text = g.top(slot)
        return text + " " + g.top("suppress") if g.rng.random() < 0.25 else text

    return make


BARE = ("{Goal}.", "Please {goal}.")
"""Injections that say nothing of an assistant or of its task: attacks only where what stands around them does."""
WEAK = ("{inject}", "“{inject}”", "===\n{inject}\n===", "URGENT!! {inject}", "ATTENTION: {inject}", "'; {inject} --")
"""What stands around an injection and says nothing of that kind."""


def _latent(documents: Sequence[str]) -> Callable[[Grammar], str]:
    """An injection in a document, an email or a result of a tool, or in a part of one."""

    def make(g: Grammar) -> str:
        inject, marker = g.option("inject"), g.option("marker")
        while inject in BARE and marker in WEAK:
            marker = g.option("marker")
        inject = g.fill(inject)
        planted = g.fill(marker.replace("{inject}", "\x02")).replace("\x02", inject[0].upper() + inject[1:])
        if g.rng.random() < 0.4:
            text = _record(g, planted)
        else:
            text = _document(g, documents)
            lines = re.split(r"(?<=[.!?\n]) +", text)
            at = int(g.rng.integers(len(lines) + 1)) if g.rng.random() < 0.6 else len(lines)
            gap = g.pick(["\n", " ", "\n\n"])
            text = " ".join(lines[:at]) + gap + planted + gap + " ".join(lines[at:])
        if g.rng.random() < 0.4:
            return _around(g, text, planted)
        return g.fill(g.top("document_task")) + text

    return make


def _around(g: Grammar, text: str, planted: str) -> str:
    """The injection with a few words before and after it, as a short window shows it."""
    at = text.find(planted[:20])
    if at < 0:
        return text
    before = text[:at].split(" ")[-int(g.rng.integers(1, 30)) :]
    after = text[at + len(planted) :].split(" ")[: int(g.rng.integers(1, 30))]
    return " ".join(before) + text[at : at + len(planted)] + " ".join(after)


def _document(g: Grammar, documents: Sequence[str]) -> str:
    draw = g.rng.random()
    if draw < 0.2:
        return _record(g)
    if draw < 0.5 or not documents:
        return " ".join(g.top("email") for _ in range(int(g.rng.integers(1, 4))))
    text = g.pick(documents)
    # No longer than what training reads of a text, so that an injection at the end is seen.
    return text[: int(g.rng.integers(80, 900))]


def _record(g: Grammar, planted: str = "") -> str:
    """What a tool returns: rows of invented people, files and messages as JSON, YAML, CSV, XML, a table or a log, with
    `planted` in a text of one of them."""
    keys = ("id", "sender", "subject", "body", "amount", "status")
    rows: list[dict[str, object]] = []
    for _ in range(int(g.rng.integers(1, 4))):
        values = (
            int(g.rng.integers(1000)), g.fill("{name}"), g.fill("{topic}"), g.top("email"),
            round(float(g.rng.random() * 500), 2), g.pick(["open", "paid", "read", "draft", "TODO"]),
        )  # fmt: skip
        rows.append(dict(zip(keys, values, strict=True)))
    kept = [key for key in keys if g.rng.random() < 0.7] or ["body"]
    if planted:
        key, row = g.pick(["subject", "body", "body"]), rows[int(g.rng.integers(len(rows)))]
        kept = [one for one in keys if one in kept or one == key]
        row[key] = g.pick([planted, f"{planted} {row[key]}", f"{row[key]} {planted}"])
    rows = [{key: row[key] for key in kept} for row in rows]
    match int(g.rng.integers(8)):
        case 0:
            return json.dumps(rows, indent=int(g.rng.integers(3)) or None, ensure_ascii=False)
        case 1:
            return "\n".join(
                "\n".join(f"{'-' if key == kept[0] else ' '} {key}: {row[key]}" for key in kept) for row in rows
            )
        case 2:
            return "\n".join(",".join(map(str, line)) for line in [kept, *(row.values() for row in rows)])
        case 3:
            return "".join(f"<row>{''.join(f'<{key}>{row[key]}</{key}>' for key in kept)}</row>\n" for row in rows)
        case 4:
            return "\n".join(
                "| " + " | ".join(map(str, line)) + " |" for line in [kept, *(row.values() for row in rows)]
            )
        case 5:
            return "\n".join(
                f"2026-0{at + 1}-1{at} 1{at}:4{at} INFO {' '.join(map(str, row.values()))}"
                for at, row in enumerate(rows)
            )
        case 6:
            return yaml.safe_dump(rows, sort_keys=False, allow_unicode=True)
        case _:
            return yaml.safe_dump(
                {g.pick(["results", "messages", "items"]): rows}, default_style=g.pick(["", '"', "'"])
            )


def _code(codes: Sequence[str]) -> Callable[[Grammar], str]:
    """Code with lines whose words occur in attacks."""

    def make(g: Grammar) -> str:
        lines = g.pick(codes)[: int(g.rng.integers(100, 1200))].split("\n") if codes else []
        for _ in range(int(g.rng.integers(1, 5))):
            lines.insert(int(g.rng.integers(len(lines) + 1)), g.top("code_line"))
        return "\n".join(lines)

    return make


def _plain_document(documents: Sequence[str]) -> Callable[[Grammar], str]:
    return lambda g: g.fill(g.top("document_task")) + _document(g, documents)


def _encoded(g: Grammar) -> str:
    """An encoded request, with or without the wish to decode it."""
    text = g.pick([g.top("harm_request"), _override(g), g.top("benign_request"), g.top("story")])
    blob = EVASIONS[g.pick(CIPHERS)](text, g.rng)
    return g.top("decode").replace("{blob}", blob).replace("blob", blob)


def _language(kind: str) -> Callable[[Grammar], str]:
    """An attack or a benign text of another language: sentences of one of them, an attack perhaps among benign ones."""

    def make(g: Grammar) -> str:
        lists = phrases("languages")
        made = lists[g.pick(list(lists))]

        def sentence(slot: str) -> str:
            options = made[slot]
            return g.choices(g.pick([one for at, one in enumerate(options) if (at % 10 == 4) is g.heldout]))

        around = [sentence("benign") for _ in range(int(g.rng.choice([0, 0, 1, 2])))]
        own = [sentence(kind) for _ in range(int(g.rng.choice([1, 1, 1, 2])))]
        at = int(g.rng.integers(len(around) + 1))
        text = g.pick([" ", " ", "\n"]).join(dict.fromkeys([*around[:at], *own, *around[at:]]))
        return text if g.rng.random() < 0.8 else text.rstrip(".!?。") if g.rng.random() < 0.5 else text.lower()

    return make


def _roles(g: Grammar) -> str:
    """A benign role of one to a dozen sentences, as long as a jailbreak."""
    extra = [g.top("style") for _ in range(int(g.rng.choice([0, 0, 2, 5, 9])))]
    return " ".join([g.top("role"), *extra])


def _several(slot: str) -> Callable[[Grammar], str]:
    return lambda g: " ".join(g.top(slot) for _ in range(int(g.rng.choice([1, 1, 1, 2, 4]))))


Kinds = Mapping[str, tuple[float, Callable[[Grammar], str]]]


def attack_kinds(documents: Sequence[str]) -> Kinds:
    """By kind of attack, its share and what makes one."""
    return {
        "override": (2.5, _override),
        "persona": (5.0, _persona),
        "fiction": (2.0, _wrapped("fiction")),
        "authority": (1.0, _wrapped("authority")),
        "leak": (0.8, _wrapped("leak")),
        "split": (1.2, _wrapped("split")),
        "latent": (7.0, _latent(documents)),
        "encoded": (1.2, _encoded),
        "languages": (6.0, _language("attack")),
    }


def _is_code(text: str) -> bool:
    return bool(re.search(r"\b(?:return|import|self|function|const)\b.*[({;:]", text))


def benign_kinds(documents: Sequence[str]) -> Kinds:
    """By kind of benign text, its share and what makes one."""
    return {
        "roles": (2.5, _roles),
        "system": (1.8, _several("system")),
        "story": (1.0, _several("story")),
        "mention": (2.0, _wrapped_plain("mention")),
        "correction": (2.5, _wrapped_plain("correction")),
        "requests": (1.5, _several("benign_request")),
        "tasks": (1.5, _several("task")),
        "records": (2.5, _record),
        "code": (3.0, _code([text for text in documents if _is_code(text)])),
        "harmful": (2.5, _several("harm_request")),
        "documents": (3.5, _plain_document(documents)),
        "blobs": (0.5, _wrapped_plain("code_blob")),
        "languages": (4.5, _language("benign")),
    }


def _wrapped_plain(slot: str) -> Callable[[Grammar], str]:
    return lambda g: g.top(slot)


def generate(kinds: Kinds, count: int, rng: Rng, *, heldout: bool = False) -> list[tuple[str, str]]:
    """`count` different texts with their kinds, in proportion to the shares."""
    grammar, names = Grammar(rng, heldout=heldout), list(kinds)
    shares = np.array([kinds[name][0] for name in names])
    found: dict[str, str] = {}
    for _ in range(count * 4):
        if len(found) >= count:
            break
        name = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        found.setdefault(kinds[name][1](grammar).strip(), name)
    return [(text, name) for text, name in found.items() if text]
