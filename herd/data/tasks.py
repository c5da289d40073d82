"""Tasks whose answers can be checked, from reasoning-gym's generators: sums, legs, equations, words backward.

The generators run from the cached package as it is. Importing `reasoning_gym` itself would pull in all its 106 tasks
and eleven more dependencies; so its package names are given to the few modules that are needed without running the
packages' own `__init__`.
"""

import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from herd.core.streams import seed_of
from herd.data.fetch import Pack

_PACKAGES = ("arithmetic", "algebra", "algorithmic")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One problem."""

    generator: str
    problem: str
    """A bare expression for `chain_sum`; the whole question, in English, for the others."""
    answer: str


@dataclass(frozen=True, kw_only=True)
class _Generator:
    name: str
    module: str
    config: dict[str, Any]


SUMS = (
    _Generator(name="chain_sum", module="arithmetic.chain_sum", config={"max_terms": 2, "max_digits": 1}),
    _Generator(name="chain_sum", module="arithmetic.chain_sum", config={"max_terms": 3, "max_digits": 1}),
    _Generator(name="chain_sum", module="arithmetic.chain_sum", config={"max_terms": 2, "max_digits": 2}),
)
OTHERS = (
    _Generator(
        name="leg_counting",
        module="arithmetic.leg_counting",
        config={"min_animals": 1, "max_animals": 2, "max_instances": 4},
    ),
    _Generator(
        name="simple_equations",
        module="algebra.simple_equations",
        config={"min_terms": 2, "max_terms": 2, "max_value": 12, "operators_weights": [0.5, 0.5, 0.0]},
    ),
    _Generator(
        name="spell_backward", module="algorithmic.spell_backward", config={"min_word_len": 3, "max_word_len": 6}
    ),
)


def tasks(pack: Pack, generators: tuple[_Generator, ...], *, num: int, seed: int) -> Iterator[Task]:
    """`num` problems, the generators in turn. The same problem may come again."""
    shares = [
        _dataset(pack, generator, size=num // len(generators) + 1, seed=seed_of(seed, "tasks", index) % 2**31)
        for index, generator in enumerate(generators)
    ]
    for index in range(num):
        generator = generators[index % len(generators)]
        entry = shares[index % len(generators)][index // len(generators)]
        problem = entry["metadata"]["expression"] if generator.name == "chain_sum" else entry["question"]
        yield Task(generator=generator.name, problem=str(problem).strip(), answer=str(entry["answer"]))


def _dataset(pack: Pack, generator: _Generator, **options: int) -> Any:
    _mount(pack)
    module = importlib.import_module(f"reasoning_gym.{generator.module}")
    stem = "".join(part.capitalize() for part in generator.name.split("_"))
    config = getattr(module, f"{stem}Config")(**generator.config, **options)
    return getattr(module, f"{stem}Dataset")(config)


def _mount(pack: Pack) -> None:
    """Make `reasoning_gym` importable from inside the cached package."""
    for name in ("reasoning_gym", *(f"reasoning_gym.{package}" for package in _PACKAGES)):
        if name not in sys.modules:
            shell = types.ModuleType(name)
            shell.__path__ = [f"{pack.path}/{name.replace('.', '/')}"]
            sys.modules[name] = shell
