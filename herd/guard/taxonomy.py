"""The hazard categories of a policy: S1 to S14 as Llama Guard 4 numbers them, and categories of the user's own.

A policy file is TOML: `exclude = ["S12"]` removes categories, and each `[[category]]` with `code`, `name` and
`description` adds one or replaces that of the same code. Names and numbers are those of the MLCommons taxonomy and of
Llama Guard 4's model card; the descriptions are ours.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from herd.errors import HerdError, unknown

CODE = re.compile(r"S[1-9][0-9]?")
"""What a category may be numbered: S1 to S99."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """One kind of hazard."""

    code: str
    name: str
    description: str
    """One sentence on what falls under it, as a guard reads it."""


@dataclass(frozen=True)
class Taxonomy:
    """The categories of a policy, in the order of their numbers."""

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        if not self.categories:
            raise HerdError("no category is left: a policy needs at least one")
        for one in self.categories:
            if not CODE.fullmatch(one.code):
                raise HerdError(f"code={one.code!r} of a category must be S1 to S99")
            if not one.name.strip() or not one.description.strip():
                raise HerdError(f"category {one.code} needs a name and a description")
            if "\n" in one.name + one.description:
                raise HerdError(f"category {one.code}: name and description must be one line each")
        if twice := sorted({code for code in self.codes if self.codes.count(code) > 1}):
            raise HerdError(f"code {twice[0]} is given to several categories: give each a code of its own")
        object.__setattr__(self, "categories", tuple(sorted(self.categories, key=lambda one: int(one.code[1:]))))

    @property
    def codes(self) -> tuple[str, ...]:
        """S1, S2, …"""
        return tuple(one.code for one in self.categories)

    def __getitem__(self, code: str) -> Category:
        for one in self.categories:
            if one.code == code:
                return one
        raise HerdError(unknown("category", code, self.codes))

    def exclude(self, codes: Iterable[str]) -> "Taxonomy":
        """Without some categories. Raises HerdError for a code that there is not."""
        gone = {self[code].code for code in codes}
        return replace(self, categories=tuple(one for one in self.categories if one.code not in gone))

    def add(self, categories: Sequence[Category]) -> "Taxonomy":
        """With further categories; one with a code that there is already replaces that one."""
        new = {one.code for one in categories}
        return replace(self, categories=(*(one for one in self.categories if one.code not in new), *categories))


def read_policy(path: Path) -> Taxonomy:
    """The taxonomy that a policy file makes of S1 to S14. Raises HerdError where it is none."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HerdError(f"{path} cannot be read as a policy: {error}") from error
    return policy_of(table, path)


def policy_of(table: Mapping[str, Any], path: Path) -> Taxonomy:
    """The taxonomy that the table of a policy file makes of S1 to S14. Raises HerdError where it makes none."""
    for key in table:
        if key not in {"exclude", "category"}:
            raise HerdError(f"{path}: {unknown('key', key, ('exclude', 'category'))}")
    exclude, rows = table.get("exclude", []), table.get("category", [])
    if not isinstance(exclude, list) or not all(isinstance(code, str) for code in exclude):
        raise HerdError(f'{path}: exclude={exclude!r} must be a list of codes, such as ["S12"]')
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise HerdError(f"{path}: category={rows!r} must be tables, each headed [[category]]")
    added = []
    for row in rows:
        fields = ("code", "name", "description")
        if set(row) != set(fields) or not all(isinstance(row[name], str) for name in fields):
            raise HerdError(f"{path}: a [[category]] has {', '.join(row) or 'nothing'}: it needs {', '.join(fields)}")
        added.append(Category(**row))
    return HAZARDS.exclude(exclude).add(added)


def _hazards(*rows: tuple[str, str]) -> Taxonomy:
    numbered = enumerate(rows, start=1)
    return Taxonomy(
        tuple(Category(code=f"S{number}", name=name, description=text) for number, (name, text) in numbered)
    )


HAZARDS = _hazards(
    ("Violent Crimes", "Enables, encourages or endorses violence against people or animals, or terrorism."),
    ("Non-Violent Crimes", "Enables, encourages or endorses theft, fraud, drugs, weapons, cyber or property crime."),
    ("Sex-Related Crimes", "Enables, encourages or endorses trafficking, assault, harassment or forced sexual acts."),
    ("Child Sexual Exploitation", "Contains, enables, encourages or endorses the sexual abuse of children."),
    ("Defamation", "States false facts about a real person that are likely to harm their reputation."),
    ("Specialized Advice", "Gives unqualified medical, legal or financial advice, or calls a danger harmless."),
    ("Privacy", "Reveals or collects private data about a person without their consent."),
    ("Intellectual Property", "Copies, or helps to copy, works that belong to somebody else."),
    ("Indiscriminate Weapons", "Enables chemical, biological, radiological, nuclear or high-yield explosive weapons."),
    ("Hate", "Demeans or dehumanizes people for what they are: race, religion, disability, sex, origin."),
    ("Suicide & Self-Harm", "Enables, encourages or endorses suicide, self-injury or disordered eating."),
    ("Sexual Content", "Contains erotica."),
    ("Elections", "States falsehoods about how, when, where or by whom votes are cast or counted."),
    ("Code Interpreter Abuse", "Seeks to escape, overload or abuse the machine that runs a model's code."),
)
"""S1 to S14."""
