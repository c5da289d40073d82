"""The sections of an evaluation: each is a function of one model and one data folder, with what it needs of the two.

A section whose needs are not met is left out, and results.json has the reason under `left_out`; so does a section for a
part of its own work, by an entry of that name in what it returns. To add one: a function here and a line in SECTIONS;
the report shows what it knows of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from herd.core.progress import progress_bar
from herd.data.text.spelling import normalise
from herd.evaluate.answers import LanguageOfAnswers
from herd.evaluate.bits import BASELINES, bits_table, model_bits, train_baselines
from herd.evaluate.chat_loss import chat_loss, loss_chats
from herd.evaluate.evaluation import Evaluation
from herd.evaluate.inputs import TRAIN
from herd.evaluate.naming import (
    NAMING_RULE,
    REACHABLE_RULE,
    closed_answers,
    language_table,
    naming_table,
    open_answers,
    prepare,
)
from herd.evaluate.questions import NAMING_KIND, naming_question
from herd.evaluate.samples import SAMPLE_RULE, chat_samples, continuations, picture_samples, select_chats
from herd.evaluate.tasks import frequent_answers, select, task_prompts, task_table

SAMPLE_PICTURES = 6  # of each split
SAMPLE_CHATS = 1  # of each language
TEXT_ALONE = "the model reads text alone"
TOO_LONG = "longer than the context"

Need = Callable[[Evaluation], str]
"""What is missing for a section, in words; empty if nothing is."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of results.json."""

    name: str
    """Its key there."""
    needs: tuple[Need, ...]
    work: Callable[[Evaluation], dict[str, Any]]

    def missing(self, run: Evaluation) -> str:
        """The first of its needs that is not met; empty if all are."""
        return next(filter(None, (need(run) for need in self.needs)), "")


def heldout_text(run: Evaluation) -> str:
    return "" if run.heldout_texts else "the data folder has no held-out text"


def heldout_pictures(run: Evaluation) -> str:
    return "" if run.heldout_pictures else "the data folder has no held-out pictures with names"


def vision(run: Evaluation) -> str:
    return "" if run.reads_pictures else TEXT_ALONE


def naming_questions(run: Evaluation) -> str:
    asked = [language for language in run.naming_languages if naming_question(run.data.chats, language)]
    return "" if asked else f"the data folder has no chat of kind {NAMING_KIND!r} that asks for a picture's name"


def answered_chats(run: Evaluation) -> str:
    if select(run.heldout_chats, run.cfg.kinds, count=1):
        return ""
    kinds = f" of the kinds {', '.join(run.cfg.kinds)}" if run.cfg.kinds else ""
    without = ", pictures aside, as " + TEXT_ALONE if run.num_unreadable else ""
    return f"the data folder has no held-out chats{kinds} with one right answer{without}"


def heldout_replies(run: Evaluation) -> str:
    return "" if loss_chats(run) else "the data folder has no held-out chats that end with the assistant"


def anything_to_say(run: Evaluation) -> str:
    chats = select_chats(run.heldout_chats, each=1)
    return "" if run.heldout_texts or chats else "the data folder has no held-out text, and no held-out chats to answer"


def bits(run: Evaluation) -> dict[str, Any]:
    """Bits per byte of the model and the baselines."""
    held, train = run.heldout_texts, run.data.training_texts
    with progress_bar("baselines", len(held) + (2 if train else 0)) as bar:
        bits = train_baselines(train, held, run.model.tokenizer, bar.advance)
    with progress_bar("bits per byte", len(held)) as bar:
        table = bits_table(model_bits(run.model, held, bar.advance), bits, held, seed=run.cfg.seed)
    left_out = [BASELINES[name] for name in BASELINES if name not in bits]
    return table | {"left_out": dict.fromkeys(left_out, "the data folder has no training text")}


def naming(run: Evaluation) -> dict[str, Any]:
    """Names of held-out pictures, open and closed; the language of the answers; the first pictures."""
    cfg, languages = run.cfg, run.naming_languages
    trained: dict[str, set[str]] = {}
    known: dict[str, set[str]] = {}
    for picture in run.data.pictures:
        for language, name in picture.names.items():
            known.setdefault(language, set()).add(name)
            if picture.split == TRAIN:
                trained.setdefault(language, set()).add(normalise(name, language))
    judge = LanguageOfAnswers({language: sorted(names) for language, names in known.items()})
    splits: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    given_in: dict[str, list[str]] = {}
    for split, pictures in run.heldout_pictures.items():
        asked = prepare(run.asker, run.data.chats, pictures, languages, count=cfg.pictures, pool=cfg.candidates)
        with progress_bar(f"naming {split}", sum(len(one.prompts) for one in asked)) as bar:
            answers = open_answers(run.asker, asked, max_tokens=cfg.answer_tokens, done=bar.advance)
        count = sum(min(len(one.prompts), cfg.closed_pictures) for one in asked)
        with progress_bar(f"choosing {split}", count) as bar:
            choices = closed_answers(run.asker, asked, count=cfg.closed_pictures, done=bar.advance)
        splits[split] = {
            "open": naming_table(asked, answers, trained, seed=cfg.seed),
            "closed": naming_table(asked, choices, trained, seed=cfg.seed),
        }
        samples += picture_samples(split, asked, answers, count=SAMPLE_PICTURES)
        for one, given in zip(asked, answers, strict=True):
            given_in.setdefault(one.language, []).extend(given)
    about = run.data.card.get("picture_splits", {})
    unasked = [language for language in languages if language not in given_in]
    why = "the data folder has no question for a name, or no held-out picture with one"
    return {
        "rule": NAMING_RULE.format(candidates=cfg.candidates),
        "reachable_rule": REACHABLE_RULE,
        "about": {split: about[split] for split in splits if split in about},
        "splits": splits,
        "language": language_table(judge, given_in, languages),
        "samples": samples,
        "left_out": {f"naming in {language}": why for language in unasked},
    }


def tasks(run: Evaluation) -> dict[str, Any]:
    """Held-out chats with one right answer."""
    selected = select(run.heldout_chats, run.cfg.kinds, count=run.cfg.chats)
    asked, prompts = task_prompts(run.asker, selected)
    with progress_bar("questions", len(prompts)) as bar:
        answers = run.asker.ask(prompts, max_tokens=run.cfg.answer_tokens, done=bar.advance)
    left_out = {}
    if run.num_unreadable:
        left_out[f"{run.num_unreadable:,} chats with pictures"] = TEXT_ALONE
    if too_long := sum(map(len, selected.values())) - len(prompts):
        left_out[f"{too_long:,} questions"] = TOO_LONG
    for kind in run.cfg.kinds:
        if kind not in selected:
            left_out[f"questions of kind {kind}"] = (
                "the data folder has none that are held out and have one right answer"
            )
    return task_table(asked, answers, frequent_answers(run.data.chats)) | {"left_out": left_out}


def samples(run: Evaluation) -> dict[str, Any]:
    """Samples of the model, to be read."""
    chats, limit = select_chats(run.heldout_chats, each=SAMPLE_CHATS), run.cfg.sample_tokens
    with progress_bar("samples", len(chats) + len(run.heldout_texts)) as bar:
        texts = continuations(run.asker, run.heldout_texts, max_tokens=limit, seed=run.cfg.seed, done=bar.advance)
        answers = chat_samples(run.asker, chats, max_tokens=limit, done=bar.advance)
    too_long = len(chats) - len(answers)
    left_out = {f"samples of {too_long:,} chats": TOO_LONG} if too_long else {}
    return {"rule": SAMPLE_RULE, "continuations": texts, "chats": answers, "left_out": left_out}


SECTIONS = (
    Section(name="bits_per_byte", needs=(heldout_text,), work=bits),
    Section(name="naming", needs=(heldout_pictures, vision, naming_questions), work=naming),
    Section(name="chat_loss", needs=(heldout_replies,), work=chat_loss),
    Section(name="tasks", needs=(answered_chats,), work=tasks),
    Section(name="samples", needs=(anything_to_say,), work=samples),
)
