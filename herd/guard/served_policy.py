"""What a server's guards block, and for whom: the file of `herd serve --policy`.

    exclude = ["S6"]                # categories that nobody is blocked for, as in any policy file
    [prompt_guard]
    threshold = 0.9                 # else the guard's own
    [key.research]                  # of one API key, by its name
    exclude = ["S2", "S9"]
    prompt_guard = false

`[[category]]` adds categories of one's own (herd.guard.taxonomy). What is not said holds for everyone, and a key that
is not named has no exceptions.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.errors import HerdError, unknown
from herd.guard.taxonomy import HAZARDS, Taxonomy, policy_of

NEVER_EXCEPTED = frozenset({"S4"})
FIELDS = ("exclude", "category", "prompt_guard", "key")


@dataclass(frozen=True, kw_only=True)
class Exceptions:
    """Of one key."""

    exclude: frozenset[str] = frozenset()
    """Categories that it is not blocked for."""
    prompt_guard: bool = True


NONE = Exceptions()


@dataclass(frozen=True, kw_only=True)
class ServedPolicy:
    """What is blocked."""

    taxonomy: Taxonomy = HAZARDS
    prompt_threshold: float | None = None
    keys: Mapping[str, Exceptions] = field(default_factory=dict)

    def of(self, caller: str) -> Exceptions:
        """For a caller as the server names it: `key NAME` for a key, an address without keys."""
        kind, _, name = caller.partition(" ")
        return self.keys.get(name, NONE) if kind == "key" else NONE


def read_served_policy(path: Path, *, key_names: Sequence[str]) -> ServedPolicy:
    """The policy in a file, for a server with these keys. Raises HerdError where a word of it means nothing."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HerdError(f"{path} cannot be read as a policy: {error}") from error
    for name in table:
        if name not in FIELDS:
            raise HerdError(f"{path}: {unknown('key', name, FIELDS)}")
    taxonomy = policy_of({name: table[name] for name in ("exclude", "category") if name in table}, path)
    given = _table(table.get("prompt_guard", {}), f"{path}: [prompt_guard]", ("threshold",))
    threshold = given.get("threshold")
    if threshold is not None and (not isinstance(threshold, int | float) or not 0 < threshold <= 1):
        raise HerdError(f"{path}: threshold={threshold!r} of [prompt_guard] must be above 0, and 1 at most")
    keys = _table(table.get("key", {}), f"{path}: [key]", key_names)
    return ServedPolicy(
        taxonomy=taxonomy,
        prompt_threshold=threshold,
        keys={name: _exceptions(row, f"{path}: [key.{name}]", taxonomy) for name, row in keys.items()},
    )


def _table(value: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HerdError(f"{where} must be a table")
    for name in value:
        if name not in known:
            raise HerdError(f"{where}: {unknown('name', name, known)}")
    return value


def _exceptions(row: Any, where: str, taxonomy: Taxonomy) -> Exceptions:
    row = _table(row, where, ("exclude", "prompt_guard"))
    codes, judged = row.get("exclude", []), row.get("prompt_guard", True)
    if not isinstance(codes, list) or not isinstance(judged, bool):
        raise HerdError(f"{where}: exclude is a list of codes, prompt_guard true or false")
    for code in codes:
        if code not in taxonomy.codes:
            raise HerdError(f"{where}: {unknown('category', str(code), taxonomy.codes)}")
        if code in NEVER_EXCEPTED:
            raise HerdError(f"{where}: {code} is blocked for everyone: leave it out")
    return Exceptions(exclude=frozenset(codes), prompt_guard=judged)
