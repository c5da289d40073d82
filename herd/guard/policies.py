"""The policies that a guard is trained under: S1 to S14, some of these or under other numbers, or with topics."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from herd.core.streams import stream
from herd.data.tasks.safety.items import Split, topics
from herd.guard.taxonomy import HAZARDS, Category, Taxonomy


def make_policy(seed: int, split: Split, number: int) -> tuple[Taxonomy, dict[str, str]]:
    """A policy, and the codes of what is a category of another number in it, by the hazard's own or the topic's name.

    Half are S1 to S14; in a fifth some of these are left out, and half of what is left out has another number, so that
    a guard has to read the list for it; three in ten have up to four topics, too.
    """
    rng = stream(seed, "guard policy", split, number)
    draw, policy = rng.random(), HAZARDS
    if draw < 0.5:
        return policy, {}
    if draw < 0.7:
        gone = [str(code) for code in rng.choice(list(HAZARDS.codes), size=int(rng.integers(1, 8)), replace=False)]
        back = [code for code in gone if rng.random() < 0.5]
        named = dict(zip(back, _numbers(len(back), rng), strict=True))
        return policy.exclude(gone).add([replace(HAZARDS[code], code=new) for code, new in named.items()]), named
    chosen = [topics(split)[i] for i in rng.permutation(len(topics(split)))[: int(rng.integers(1, 5))]]
    named = dict(zip((one.names[0] for one in chosen), _numbers(len(chosen), rng), strict=True))
    way = int(rng.integers(2))
    added = [
        Category(code=named[one.names[0]], name=one.names[way], description=one.descriptions[way]) for one in chosen
    ]
    return policy.add(added), named


def _numbers(count: int, rng: np.random.Generator) -> list[str]:
    """Of further categories: as people number them, from S15 on; in a quarter of the policies any up to S39."""
    if rng.random() < 0.75:
        return [f"S{number}" for number in range(15, 15 + count)]
    return [f"S{number}" for number in rng.choice(np.arange(15, 40), size=count, replace=False)]


def names_topics(named: Mapping[str, str]) -> bool:
    """Whether topics are categories of a policy."""
    return not set(named) <= set(HAZARDS.codes)


def violated(violates: Iterable[str], policy: Taxonomy, named: Mapping[str, str]) -> tuple[str, ...]:
    """The categories of a policy, in their order, of what violates these hazards and is about these topics."""
    codes = {named.get(one, one) for one in violates}
    return tuple(code for code in policy.codes if code in codes)
