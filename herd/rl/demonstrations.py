"""Demonstrations: chats that show right answers to the prompts of an environment, for fine-tuning before RL.

They are of training content, as the prompts of RL are, and the held-out ones of what is held out there. Their rows keep
what grades an answer, so that evaluation grades as RL does. Their seed is another than that of RL under the same seed:
RL would begin with the prompts that the model has learnt by heart, of which all answers are right.
"""

from collections.abc import Iterator
from typing import Any

from herd.config import DemonstrationSource
from herd.core.streams import seed_of
from herd.data.loading import tables
from herd.data.tasks.chats import verifier_of
from herd.data.tasks.made import MADE
from herd.data.tasks.rows import cell_name
from herd.data.tasks.task import matching, prompt_key
from herd.data.text.documents import digest
from herd.errors import HerdError
from herd.rl.environment import Demonstrated, Environment, open_environment, text_of

LANGUAGE = "und"
"""Of lists of digits and the like."""
FRUITLESS = 100
"""Rounds through the cells without a new prompt after which there are no more."""


def rows(source: DemonstrationSource, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of chats.parquet, each prompt once. Raises HerdError where there are too few different ones."""
    own = seed_of(seed, "demonstrations")
    for heldout, count in ((False, source.num), (True, source.heldout)):
        if count:
            environment = open_environment(source.environment, None, own, heldout=heldout)
            yield from _rows(
                source, demonstrated(source.environment, environment), "heldout" if heldout else "train", count
            )


def demonstrated(name: str, environment: Environment) -> Demonstrated:
    """The environment, once it can show how it is done. Raises HerdError."""
    if not hasattr(environment, "demonstration"):
        raise HerdError(f"{name} has no method `demonstration(cell, index)`, so nothing can be shown of it")
    return environment  # type: ignore[return-value]


def _rows(source: DemonstrationSource, environment: Demonstrated, split: str, count: int) -> Iterator[dict[str, Any]]:
    kind, cells = cell_name(source.environment), matching(environment.cells, source.cells)
    seen: set[str] = set()
    index = fruitless = 0
    while len(seen) < count:
        before = len(seen)
        for cell in cells[: count - before]:
            prompt = environment.prompt(cell, index)
            if (key := prompt_key(prompt)) in seen:
                continue
            seen.add(key)
            messages = [*prompt, *environment.demonstration(cell, index)]
            yield {
                "id": f"{kind}/{digest(tables.to_json(messages))}",
                "split": split,
                "kind": kind,
                "language": LANGUAGE,
                "messages": tables.to_json(messages),
                "answer": text_of(messages[-1]),
                "verifier": verifier_of(kind) if kind in MADE else prompt[-1].get("problem", ""),
                "source": kind,
                "tools": tables.to_json(list(environment.tools)) if environment.tools else "",
            }
        index, fruitless = index + 1, 0 if len(seen) > before else fruitless + 1
        if fruitless == FRUITLESS:
            raise HerdError(
                f"{source.environment} has {len(seen)} different prompts for {split}, not {count}: ask for fewer, or "
                "for more difficult cells"
            )
