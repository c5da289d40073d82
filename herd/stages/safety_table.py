"""`[safety]` of a recipe: what refusing costs and brings, in each stage that makes a model chat.

It is no stage and writes no folder. The demonstrations of `refusals` and `twins` go into each data folder. Every model
of sft, rl and dpo is asked their held-out questions: by its evaluation, else by one of its own, `evaluate-STAGE`. rl
learns from both if it names no environments, and from the guard above it if it names none. What a table sets stays.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from herd.config.guard import SafetyConfig
from herd.errors import HerdError
from herd.stages.settings import make_config

SAFETY = "safety"
SIDES = ("refusals", "twins")
REWARDS = ("refusals", "twins")
"""Of rl: equal shares, so that a model that cannot tell them apart gains nothing by refusing, or answering, all."""
CHATS = ("sft", "rl", "dpo")
"""Kinds of stages after which a model is asked."""


def with_safety(
    document: dict[str, Any], order: Sequence[str], models: Sequence[str], where: str
) -> tuple[dict[str, Any], list[str]]:
    """A recipe's document and the order of its tables, with what its table `safety` adds.

    `models` are the kinds of stages that write a model. Raises HerdError for a wrong key, and without [data].
    """
    if not isinstance(document[SAFETY], dict):
        raise HerdError(f"{where}: {SAFETY} = {document[SAFETY]!r} stands alone, it is a table: [{SAFETY}]")
    config = make_config(SafetyConfig, document[SAFETY], where=f"{where} [{SAFETY}]")
    made = deepcopy({name: value for name, value in document.items() if name != SAFETY})
    named = made.setdefault("stage", {})
    tables = {name: made.get(name, named.get(name)) for name in order if name != SAFETY}
    tables = {name: table for name, table in tables.items() if isinstance(table, dict)}
    places: list[str] = []
    evaluated: set[str] = set()
    model = guard = ""
    for name, table in tables.items():
        kind = table.get("kind", name)
        if kind == "data":
            add_demonstrations(table, config)
        elif kind == "rl":
            table.setdefault("environments", list(REWARDS))
            table |= {"guard": guard} if guard and "guard" not in table else {}
        elif kind == "evaluate" and table.get("suite", "general") == "general":
            evaluated.add(str(table.get("from", model)))
            if isinstance(table.get("kinds"), list) and table["kinds"]:
                table["kinds"] = list(dict.fromkeys([*table["kinds"], *SIDES]))
        model, guard = name if kind in models else model, name if kind == "guard" else guard
        places += [name]
        if kind in CHATS:
            places += [f"evaluate-{name}"]
    if not any(table.get("kind", name) == "data" for name, table in tables.items()):
        raise HerdError(f"{where} [{SAFETY}] adds demonstrations to [data], and there is no such table")
    for name, table in tables.items():
        own = f"evaluate-{name}"
        if table.get("kind", name) in CHATS and name not in evaluated and own not in tables:
            named[own] = {"kind": "evaluate", "from": name, "kinds": list(SIDES), "chats": config.heldout}
    return made, [name for name in dict.fromkeys(places) if name in tables or name in named]


def add_demonstrations(table: dict[str, Any], config: SafetyConfig) -> None:
    """Those of either side that a data table does not have: three of seven refuse."""
    refusals = config.demonstrations * 3 // 7
    have = table.setdefault("demonstrations", [])
    if not isinstance(have, list) or not all(isinstance(one, dict) for one in have):
        return  # refused where the table's config is made
    for side, count in zip(SIDES, (refusals, config.demonstrations - refusals), strict=True):
        if side not in [one.get("environment") for one in have]:
            have += [{"environment": side, "num": count, "heldout": config.heldout}]
