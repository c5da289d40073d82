"""The policies that a guard is trained under: S1 to S14, some of these, or topics as further categories."""

import numpy as np

from herd.core.streams import stream
from herd.data.tasks.safety.items import Item, Split, topics
from herd.guard.taxonomy import HAZARDS, Category, Taxonomy


def make_policy(seed: int, split: Split, number: int) -> tuple[Taxonomy, dict[str, str]]:
    """A policy, and the codes of the topics that are categories in it: in three of five S1 to S14; in one some of these
    are excluded; in one there are up to three topics too."""
    rng = stream(seed, "guard policy", split, number)
    draw, policy = rng.random(), HAZARDS
    if draw < 0.6:
        return policy, {}
    if draw < 0.8:
        gone = rng.choice(list(HAZARDS.codes), size=int(rng.integers(1, 8)), replace=False)
        return policy.exclude([str(code) for code in gone]), {}
    chosen = rng.permutation(len(topics(split)))[: int(rng.integers(1, 4))]
    codes = rng.choice(np.arange(15, 40), size=len(chosen), replace=False)
    named = {topics(split)[i].names[0]: f"S{code}" for i, code in zip(chosen, codes, strict=True)}
    way = int(rng.integers(2))
    of = [topics(split)[i] for i in chosen]
    added = [Category(code=named[one.names[0]], name=one.names[way], description=one.descriptions[way]) for one in of]
    return policy.add(added), named


def violated(item: Item, policy: Taxonomy, named: dict[str, str]) -> tuple[str, ...]:
    """The categories of a policy that an item violates, in their order."""
    codes = set(item.codes)
    codes.update(named[name] for name in item.topics if name in named)
    return tuple(code for code in policy.codes if code in codes)
