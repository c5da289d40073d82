"""Writes herd/data/text/word_rules.json from spaCy: `python tests/parity/spacy_rules.py`.

Long classes of characters have names in angle brackets, as in the source of spaCy; `xx` is for languages without rules
of their own. Words are joined by spaces in an exception, one exception a line.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import spacy
from datatrove.utils.text import PUNCTUATION_SET
from spacy.lang import char_classes
from spacy.lang.id._tokenizer_exceptions_list import ID_BASE_EXCEPTIONS
from spacy.lang.tokenizer_exceptions import URL_PATTERN

from herd.data.text import word_rules

blank = functools.cache(spacy.blank)  # some take seconds, and the test reads them too

LANGUAGES = ("xx", "en", "de", "fr", "es", "it", "pt", "ru", "id", "ar")
CLASSES = {
    "LOWER": char_classes.ALPHA_LOWER,
    "UPPER": char_classes.ALPHA_UPPER,
    "ALPHA": char_classes.ALPHA,
    "ICONS": char_classes.CONCAT_ICONS,
    "UNITS": char_classes.UNITS,
    "CURRENCY": char_classes.CURRENCY,
    "PUNCT": char_classes.PUNCT,
    "QUOTES": char_classes.CONCAT_QUOTES,
}
HYPHENS = "[-–—‐‑]"
FRENCH = (
    ("", "[⟨LOWER⟩]+$"),
    ("", "[⟨LOWER⟩]*$"),
    ("", f"[⟨LOWER⟩][{HYPHENS[1:-1]}⟨LOWER⟩'’]*$"),
    (f"^[⟨ALPHA⟩]+{HYPHENS}", f"{HYPHENS}(?:l['’])?[⟨ALPHA⟩]+$"),
)
"""What the words that French does not split begin and end with, so that a class is compiled once and not 300 times."""


def rules() -> dict[str, Any]:
    """The content of the file."""
    base = _exceptions(blank(word_rules.OTHERS).tokenizer.rules)
    languages = {}
    for language in LANGUAGES:
        tokenizer = blank(language).tokenizer
        found = _exceptions(tokenizer.rules)
        cased = sorted(ID_BASE_EXCEPTIONS) if language == "id" else []
        forms = {form for word in cased for form in word_rules.forms(word)}
        inherited = base if language != word_rules.OTHERS else {}
        own = sorted({chunk for chunk in found if found[chunk] != inherited.get(chunk)} - forms)
        assert set(base) | forms <= set(found) and all(found[form] == form for form in forms)
        languages[language] = {
            "prefix": _named(tokenizer.prefix_search.__self__.pattern),
            "suffix": _named(tokenizer.suffix_search.__self__.pattern),
            "infix": _named(tokenizer.infix_finditer.__self__.pattern),
            "token": _french(_named(tokenizer.token_match.__self__.pattern)) if tokenizer.token_match else "",
            "exceptions": "\n".join(found[chunk] for chunk in own),
            "cased": " ".join(cased),
        }
    return {
        "source": f"spaCy {spacy.about.__version__.rsplit('.', 1)[0]}, MIT licence, Copyright (C) 2016-2024 "
        "ExplosionAI GmbH, 2016 spaCy GmbH, 2015 Matthew Honnibal; written by tests/parity/spacy_rules.py",
        "classes": CLASSES,
        "url": _named(URL_PATTERN),
        "punctuation": "".join(sorted(PUNCTUATION_SET)),
        "languages": languages,
    }


def text() -> str:
    """The file."""
    return json.dumps(rules(), ensure_ascii=False, indent=1) + "\n"


def _exceptions(special: dict[str, list[dict[int, str]]]) -> dict[str, str]:
    """What is split in a way of its own, and its words; those of an exception of several chunks are one."""
    orth = spacy.symbols.ORTH
    found = {}
    for chunk, tokens in special.items():
        if chunk.isspace():
            continue
        if " " in chunk:
            assert len(tokens) == 1, chunk
            chunk = word_rules.JOINT.join(chunk.split(" "))
            found[chunk] = chunk
        else:
            found[chunk] = " ".join(token[orth] for token in tokens)
    return found


def _named(pattern: str) -> str:
    assert "⟨" not in pattern
    for name, chars in CLASSES.items():
        pattern = pattern.replace(chars, f"⟨{name}⟩")
    return pattern


def _french(pattern: str) -> str:
    groups: dict[tuple[str, str], list[str]] = {shape: [] for shape in FRENCH}
    for one in re.split(r"\)\|\(\?:(?=\^)", pattern.removeprefix("(?iu)(?:").removesuffix(")")):
        shape = next((head, tail) for head, tail in reversed(FRENCH) if one.startswith(head) and one.endswith(tail))
        groups[shape].append(one.removeprefix(shape[0]).removesuffix(shape[1]))
    parts = [f"{head}(?:{'|'.join(group)}){tail}" for (head, tail), group in groups.items()]
    return f"(?iu){'|'.join(parts)}"


if __name__ == "__main__":
    Path(word_rules.RULES).write_text(text(), encoding="utf-8")
