"""What `herd evaluate` and `herd bench needle` ask beside the held-out rows of a data folder, for decontamination.

Facts that are planted in long texts are made of keys and values that are drawn, so their wordings are the items, with
gaps where key and value stand. Wordings of the kinds that have fewer than 8 words (tables, votes, counts, chains of
names) are common phrases, and are not among the items.
"""

from collections.abc import Iterator

from herd.data.packages.grammar import ORDERS, RULES
from herd.data.packages.novel import QUESTIONS, chapters
from herd.data.packages.planted import SAYINGS
from herd.data.packages.statements import EVALUATION
from herd.data.sources.fetch import Pack
from herd.data.text.contamination import ANY, NUMBER, Item, Pattern

KEY = 2 * ANY
VALUES = (ANY, 2 * ANY, 3 * ANY)
"""A number or a word; a name; a phrase."""


def long_text_sets(novel: Pack | None) -> dict[str, list[Item]]:
    """Names and items of the sets that are asked after long texts; the novel itself where its package is there."""
    sets: dict[str, list[Item]] = {
        "needles": [Pattern.of(saying, key=KEY, value=NUMBER) for of in SAYINGS.values() for saying in of],
        "statements": list(_statements()),
        "grammar": list(_grammar()),
        "novel, questions": [f"{words} {names[0]}" for _, words, names in QUESTIONS],
    }
    if novel is not None:
        sets["novel"] = [chapter.text for chapter in chapters(novel)]
    return sets


def _statements() -> Iterator[Pattern]:
    nouns = sorted({noun for of in EVALUATION.nouns.values() for noun in of})
    seen = set()
    for template in (text for pair in EVALUATION.pairs for text in pair):
        for noun in nouns if "{noun}" in template else [""]:
            for value in VALUES if "{value}" in template else [""]:
                pattern = Pattern.of(template.replace("{noun}", noun), key=KEY, value=value)
                if pattern.words not in seen:
                    seen.add(pattern.words)
                    yield pattern


def _grammar() -> Iterator[Pattern]:
    for order in ORDERS.values():
        for where in ("before", "after"):
            rules = RULES.replace("{order}", order).replace("{where}", where)
            yield from (Pattern.of(rule, many=ANY, past=ANY) for rule in rules.split(". "))
