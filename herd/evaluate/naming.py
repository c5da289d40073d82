"""Naming held-out pictures: in open words and among other names, beside the same with the pictures shuffled.

Within a language every picture gets the same question, so the answer to picture j is also the answer of the control
in which picture i is replaced by j: no answer is generated twice, and the control is a mean over all rotations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.core.statistics import share
from herd.data.loading.tables import Picture
from herd.data.tasks.chats import Chat
from herd.data.text.spelling import normalise
from herd.evaluate.answers import LANGUAGE_RULE, MATCH_RULE, LanguageOfAnswers
from herd.evaluate.questions import Asker, Done, naming_question, replace_picture, text_of
from herd.evaluate.statistics import RATIO_RULE, Group, ratio_to_control

if TYPE_CHECKING:
    from herd.engine.model import Prompt

NAMING_RULE = (
    "Per language the first pictures of the split by a hash of the id that have a name in it. Open: the greedy answer, "
    "by exact match. " + MATCH_RULE + " Closed: the name with the highest log-likelihood, end of turn included, of "
    "{candidates} names: those of the pictures asked and, up to that number, of others of the split in the language, "
    "all different after normalisation. Ratio: " + RATIO_RULE
)
REACHABLE_RULE = "Reachable: the picture's name is also a name of a training picture in the same language."


@dataclass(frozen=True, kw_only=True)
class NamingQuestions:
    """One language's questions about one split, with what came back."""

    language: str
    question: str
    pictures: list[Picture]
    prompts: "list[Prompt]"
    candidates: list[str]
    """Names, all different after normalisation; the right ones first."""

    @property
    def names(self) -> list[str]:
        return [normalise(picture.names[self.language], self.language) for picture in self.pictures]

    def group(self, answers: Sequence[str]) -> Group:
        """Which answer fits which picture."""
        given = np.array([normalise(answer, self.language) for answer in answers], dtype=object)
        hits = np.array(self.names, dtype=object)[:, None] == given[None, :]
        return Group(pictures=tuple(picture.id for picture in self.pictures), hit_PP=hits.astype(bool))


def prepare(
    asker: Asker, chats: Sequence[Chat], pictures: Sequence[Picture], languages: Sequence[str], *, count: int, pool: int
) -> list[NamingQuestions]:
    """The questions about one split's pictures; languages without a question or names are left out."""
    asked = []
    for language in languages:
        question = naming_question(chats, language)
        named = [picture for picture in pictures if normalise(picture.names.get(language, ""), language)]
        if question is None or not named:
            continue
        distinct: dict[str, str] = {}
        for picture in named:
            if len(distinct) < pool:
                distinct.setdefault(normalise(picture.names[language], language), picture.names[language])
        chosen = [p for p in named[:count] if normalise(p.names[language], language) in distinct]
        asked.append(
            NamingQuestions(
                language=language,
                question=text_of(question),
                pictures=chosen,
                prompts=[asker.prompt(replace_picture(question, picture.id)) for picture in chosen],
                candidates=list(distinct.values()),
            )
        )
    return asked


def open_answers(asker: Asker, asked: Sequence[NamingQuestions], *, max_tokens: int, done: Done) -> list[list[str]]:
    """The model's words for every question."""
    prompts = [prompt for one in asked for prompt in one.prompts]
    answers = iter(asker.ask(prompts, max_tokens=max_tokens, done=done))
    return [[next(answers) for _ in one.prompts] for one in asked]


def closed_answers(asker: Asker, asked: Sequence[NamingQuestions], *, count: int, done: Done) -> list[list[str]]:
    """The likeliest of the candidates for the first `count` questions of each language."""
    from herd.engine.score import log_likelihoods

    tokenizer = asker.model.tokenizer
    chosen = []
    for one in asked:
        names = [[*ids, tokenizer.ids.eot] for ids in tokenizer.encode_batch(one.candidates)]
        answers = []
        for prompt in one.prompts[:count]:
            scores = log_likelihoods(asker.model, [(prompt, name) for name in names])
            answers.append(one.candidates[int(np.argmax(scores))])
            done(1)
        chosen.append(answers)
    return chosen


def naming_table(
    asked: Sequence[NamingQuestions], answers: Sequence[Sequence[str]], trained: Mapping[str, set[str]], *, seed: int
) -> dict[str, Any]:
    """Scores and controls by language and over all; `trained`: normalised names of training pictures by language."""
    groups, rows = [], []
    reachable = {"count": 0, "hits": 0}
    for one, given in zip(asked, answers, strict=True):
        whole = replace(one, pictures=one.pictures[: len(given)])
        group = whole.group(given)
        known = np.array([name in trained.get(one.language, set()) for name in whole.names], dtype=bool)
        hits = int((np.diag(group.hit_PP) & known).sum())
        reachable["count"] += int(known.sum())
        reachable["hits"] += hits
        rows.append(
            {
                "language": one.language,
                "question": one.question,
                "candidates": len(one.candidates),
                **ratio_to_control([group], seed=seed),
                "reachable": share(hits, int(known.sum())),
            }
        )
        groups.append(group)
    if not groups:
        return {"rows": [], "all": None}
    return {"rows": rows, "all": {**ratio_to_control(groups, seed=seed), "reachable": share(**reachable)}}


def language_table(
    judge: LanguageOfAnswers, answers: Mapping[str, Sequence[str]], languages: Sequence[str]
) -> dict[str, Any]:
    """Whether the answers are in the language asked, by language and over all."""
    rows = []
    for language, given in answers.items():
        others = [other for other in languages if other != language]
        elsewhere = [judge.is_in(answer, other) for answer in given for other in others]
        hits = sum(judge.is_in(answer, language) for answer in given)
        rows.append(
            {
                "language": language,
                **share(hits, len(given)),
                "overlap": sum(elsewhere) / len(elsewhere) if elsewhere else None,
            }
        )
    overlaps = [row["overlap"] for row in rows if row["overlap"] is not None]
    return {
        "rule": LANGUAGE_RULE,
        "rows": rows,
        "all": {
            **share(sum(row["hits"] for row in rows), sum(row["count"] for row in rows)),
            "overlap": sum(overlaps) / len(overlaps) if overlaps else None,
        },
    }
