"""Questions of the suite for long texts: which kinds there are, and how they are put at all depths of one text.

Controls get the same questions: with the fact left out, or answered by the same model without its queries' temperature.
"""

import copy
import re
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from herd.core.streams import stream
from herd.data.packages import grammar, planted
from herd.data.packages.long_batches import evaluation_keys
from herd.data.packages.planted import Keys, Planter, Quiz
from herd.engine.model import LoadedModel
from herd.engine.reader import Reader
from herd.evaluate.inputs import DataFolder
from herd.evaluate.needle import DEPTHS, AnswerToQuiz, Haystack
from herd.evaluate.section_cache import SectionCache

Maker = Callable[[np.random.Generator, Keys], Quiz]


def needle_of(rng: np.random.Generator, keys: Keys, *, language: str = "en", decoys: int = 0) -> Quiz:
    return planted.needle(rng, keys, language, decoys=decoys)


TRANSLATION = "translation by a grammar, of 4"

TASKS: dict[str, Maker] = {
    "multi-key, 4 decoys": partial(needle_of, decoys=4),
    "multi-key, 16 decoys": partial(needle_of, decoys=16),
    "needle in German": partial(needle_of, language="de"),
    "needle in Japanese": partial(needle_of, language="ja"),
    "multi-value, 2": planted.multi_value,
    "variable, 2 hops": planted.variable,
    "list of 12": planted.table,
    "counting to 5": planted.counting,
    "order of two": planted.ordering,
    "votes for three": planted.aggregation,
    TRANSLATION: grammar.translation,
}

KEY_TOKENS = 100_000
"""Tokens of the text whose words keys are made of, where the data folder has no English."""


def heldout_keys(data: Path, model: LoadedModel, ids: np.ndarray) -> Keys:
    """Keys that no training sample shows: of English words of the training text, or of the text `ids` without any."""
    if DataFolder(data).training_texts.get("en"):
        return evaluation_keys(data)
    text = model.tokenizer.decode(ids[:KEY_TOKENS].tolist())
    return Keys(planted.frequent_words([text]), evaluation=True)


def ask_all(
    hay: Haystack, name: str, maker: Maker, keys: Keys, length: int, seeds: int, *, planted: bool = True
) -> dict[float, list[AnswerToQuiz]]:
    """Answers by depth; what is asked is a function of the kind's name, the length, the depth and the seed."""
    answers: dict[float, list[AnswerToQuiz]] = {}
    for place, depth in enumerate(DEPTHS):
        for seed in range(seeds):
            rng = stream(seed, "needle", name, length, place)
            asked = hay.ask(maker(rng, keys), length=length, depth=depth, rng=rng, planted=planted)
            answers.setdefault(depth, []).append(asked)
    return answers


def share_right(answers: dict[float, list[AnswerToQuiz]]) -> float:
    return statistics.fmean(one.right for of_depth in answers.values() for one in of_depth)


@contextmanager
def swap_model(hay: Haystack, other: LoadedModel) -> Iterator[None]:
    """Let another model answer from the same cache: one that differs in its queries alone."""
    own = hay.reader.model
    hay.reader.model = other
    try:
        yield
    finally:
        hay.reader.model = own


def disable_temperature(model: LoadedModel) -> LoadedModel:
    """The same weights, packed ones too, queries unscaled. Keys and values do not depend on the temperature."""
    config = replace(model.config, temperature_tuning=False)
    other = copy.copy(model.transformer)  # its layers are the same objects
    other.config = config
    return replace(model, config=config, transformer=other)


class Questions:
    """What is asked of one model, each kind at each length a section of its own. The text is read when the first
    question comes that no earlier attempt has answered."""

    def __init__(self, model: LoadedModel, ids: np.ndarray, keys: Keys, cache: SectionCache) -> None:
        self.model, self.ids, self.keys, self.cache = model, ids, keys, cache

    @cached_property
    def hay(self) -> Haystack:
        """The text in a reader's cache."""
        reader = Reader(self.model, context=len(self.ids) + self.model.config.chunk_size)
        reader.read(torch.from_numpy(self.ids))
        return Haystack(reader, Planter(self.model.tokenizer), self.ids)

    def answers(
        self, name: str, maker: Maker, length: int, seeds: int, *, control: str = "", other: LoadedModel | None = None
    ) -> dict[float, list[AnswerToQuiz]]:
        """Answers by depth; a control has the same questions, unplanted or to another model."""

        def work() -> dict[str, Any]:
            with swap_model(self.hay, other or self.model):
                planted = not control or other is not None
                found = ask_all(self.hay, name, maker, self.keys, length, seeds, planted=planted)
            return {str(depth): [asdict(one) for one in of] for depth, of in found.items()}

        section = re.sub(r"\W+", "-", " ".join([str(length), name, control]).strip())
        result = self.cache.do(section, work)
        return {float(depth): [AnswerToQuiz(**one) for one in of] for depth, of in result.items()}
