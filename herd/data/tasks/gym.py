"""reasoning-gym's generators as tasks, graded by their own verifiers: sums, legs, equations, words spelled backward.

The generators run from the cached package as it is. Importing `reasoning_gym` itself would pull in all its 106 tasks
and eleven more dependencies; so its package names are given to the few modules that are needed without running the
packages' own `__init__`.
A problem is a function of its generator, config and index: these three are kept with a question (`Problem`), and the
verifier is made from them again.
"""

import importlib
import json
import re
import sys
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from herd.core.streams import seed_of
from herd.data.sources.fetch import Pack, pack_of
from herd.data.tasks.task import UNKNOWN, Grade, Messages, prompt_key
from herd.errors import HerdError

PACKAGE = "reasoning-gym"


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A kind of problem."""

    dataset: str
    """Its module in reasoning-gym, as `arithmetic.chain_sum`."""
    config: dict[str, Any]


SUMS = (
    Generator(dataset="arithmetic.chain_sum", config={"max_terms": 2, "max_digits": 1}),
    Generator(dataset="arithmetic.chain_sum", config={"max_terms": 3, "max_digits": 1}),
    Generator(dataset="arithmetic.chain_sum", config={"max_terms": 2, "max_digits": 2}),
)
OTHERS = (
    Generator(dataset="arithmetic.leg_counting", config={"min_animals": 1, "max_animals": 2, "max_instances": 4}),
    Generator(
        dataset="algebra.simple_equations",
        config={"min_terms": 2, "max_terms": 2, "max_value": 12, "operators_weights": [0.5, 0.5, 0.0]},
    ),
    Generator(dataset="algorithmic.spell_backward", config={"min_word_len": 3, "max_word_len": 6}),
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem of a generator, and all that its verifier needs."""

    dataset: str
    config: dict[str, Any]
    """With its `seed` and `size`."""
    index: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Problem":
        try:
            problem = Problem(**json.loads(text))
            known = re.fullmatch(r"[a-z_]+\.[a-z_0-9]+", problem.dataset)
        except (ValueError, TypeError):
            known = None
        if not known:
            raise HerdError(f"the verifier {text[:60]!r} names no problem: write the data folder again")
        return problem


class Gym:
    """The generators of one package; without a `pack` it is brought into the cache when it is first needed."""

    def __init__(self, pack: Pack | None = None) -> None:
        self._pack = pack
        self._datasets: dict[str, Any] = {}

    def entry(self, problem: Problem) -> dict[str, Any]:
        """`question`, `answer` and `metadata`."""
        entry: dict[str, Any] = self._dataset(problem)[problem.index]
        return entry

    def grade(self, problem: Problem, answer: str) -> Grade:
        """By the generator's verifier, which may know several right answers; one that raises gives 0."""
        dataset, entry = self._dataset(problem), self.entry(problem)
        try:
            score = float(dataset.score_answer(answer.strip(), entry))
        except Exception as error:  # any string is answered, whatever a verifier makes of it
            return Grade(score=0.0, reason=f"the verifier of {problem.dataset} raised {type(error).__name__}")
        if score >= 1:
            return Grade(score=1.0, reason="right")
        score = score if score > 0 else 0.0  # NaN too
        return Grade(
            score=score, reason=f"{score:.2f} by the verifier of {problem.dataset}, {entry['answer']} is right"
        )

    def _dataset(self, problem: Problem) -> Any:
        key = json.dumps([problem.dataset, problem.config], sort_keys=True)
        if key not in self._datasets:
            config = self._part(problem.dataset, "Config")(**problem.config)
            self._datasets[key] = self._part(problem.dataset, "Dataset")(config)
        return self._datasets[key]

    def levels(self, dataset: str, most: int, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The configs of a generator by the levels of its curriculum, at most so many, each with these options.

        Raises HerdError where there is no such generator, or it needs what is not installed.
        """
        try:
            curriculum = self._part(dataset, "Curriculum")()
        except (ImportError, AttributeError) as error:
            raise HerdError(f"reasoning-gym's generator {dataset} cannot be used ({error})") from None
        highest = {name: len(attribute.levels) - 1 for name, attribute in curriculum.attributes.items()}
        configs = {}
        for level in range(min(most, max(highest.values(), default=0) + 1)):
            for name, last in highest.items():
                curriculum.set_attr_level(name, min(level, last))
            configs[f"level-{level}"] = asdict(curriculum.generate_configuration(options))
        return configs

    def _part(self, dataset: str, part: str) -> Any:
        """The `Config`, `Dataset` or `Curriculum` of a generator, whose names differ in capitals: `GCDConfig`."""
        self._mount(dataset.partition(".")[0])
        module = importlib.import_module(f"reasoning_gym.{dataset}")
        wanted = dataset.partition(".")[2].replace("_", "") + part.lower()
        found = next((name for name in vars(module) if name.lower() == wanted), None)
        if found is None:
            raise AttributeError(f"it has no {part}")
        return vars(module)[found]

    def _mount(self, category: str) -> None:
        """Make `reasoning_gym` importable from inside the cached package."""
        for name in ("reasoning_gym", f"reasoning_gym.{category}"):
            if name not in sys.modules:
                self._pack = self._pack or pack_of(PACKAGE)
                shell = types.ModuleType(name)
                shell.__path__ = [f"{self._pack.path}/{name.replace('.', '/')}"]
                sys.modules[name] = shell


class GymTask:
    """`num` problems of several generators in turn. The same problem may come again."""

    def __init__(
        self,
        generators: tuple[Generator, ...],
        *,
        num: int,
        seed: int,
        pack: Pack | None = None,
        wording: Callable[[int, str], str] = lambda i, problem: problem,
    ) -> None:
        """`wording(i, text)` is how prompt `i` asks for the problem `text`."""
        self._gym, self._num, self._wording = Gym(pack), num, wording
        size = num // len(generators) + 1
        self._generators = [
            Generator(
                dataset=generator.dataset,
                config=generator.config | {"size": size, "seed": seed_of(seed, "tasks", index) % 2**31},
            )
            for index, generator in enumerate(generators)
        ]
        self._places: dict[str, int] = {}
        self._entry = lru_cache(maxsize=8)(lambda i: self._gym.entry(self.problem(i)))

    def __len__(self) -> int:
        return self._num

    def problem(self, i: int) -> Problem:
        """What is kept with prompt `i` to grade it by."""
        index, turn = divmod(i, len(self._generators))
        generator = self._generators[turn]
        return Problem(dataset=generator.dataset, config=generator.config, index=index)

    def text(self, i: int) -> str:
        """The problem: a bare expression of `chain_sum`, of the others the whole question in English."""
        entry, is_sum = self._entry(i), self.problem(i).dataset.endswith(".chain_sum")
        return str(entry["metadata"]["expression"] if is_sum else entry["question"]).strip()

    def prompt(self, i: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self._wording(i, self.text(i))}]

    def solution(self, i: int) -> str:
        return str(self._entry(i)["answer"])

    def grade(self, messages: Messages, answer: str) -> Grade:
        if not self._places:
            self._places = {prompt_key(self.prompt(i)): i for i in range(len(self))}
        i = self._places.get(prompt_key(messages))
        return UNKNOWN if i is None else self._gym.grade(self.problem(i), answer)
