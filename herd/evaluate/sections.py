"""The parts of an evaluation, each a function of one loaded model and one data folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from herd.data.chats import Chat
from herd.data.spelling import normalise
from herd.engine.load import load
from herd.engine.pipeline import AnswerPipeline
from herd.evaluate.answers import LanguageOfAnswers
from herd.evaluate.bits import bits_table, cap_documents, model_bits, train_baselines
from herd.evaluate.inputs import Picture, read_chats, read_clips, read_pictures, read_texts
from herd.evaluate.naming import (
    NAMING_RULE,
    REACHABLE_RULE,
    closed_answers,
    language_table,
    naming_table,
    open_answers,
    prepare,
)
from herd.evaluate.questions import Asker, shows
from herd.evaluate.samples import SAMPLE_RULE, chat_samples, continuations, picture_samples, select_chats
from herd.evaluate.tasks import frequent_answers, select, task_prompts, task_table

if TYPE_CHECKING:
    from herd.config import EvaluateConfig

SPLITS = ("subjects", "styles")
NUM_SLOTS = 48  # questions in work at once
CAPACITY = 2048  # tokens of a question with its answer: a clip of eight frames fits
SAMPLE_PICTURES = 6  # of each split
SAMPLE_CHATS = 1  # of each language


class Evaluation:
    """Everything loaded once; each method is one section of results.json."""

    def __init__(self, cfg: "EvaluateConfig", model: Path, data: Path) -> None:
        self.cfg, self.data = cfg, data
        self.model = load(model)
        self._engine = self.model.engine(
            max_num_seqs=NUM_SLOTS, max_model_len=min(self.model.config.max_positions, CAPACITY)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()

    @property
    def _sees(self) -> bool:
        return self.model.processor.reads_pictures

    @cached_property
    def _pictures(self) -> list[Picture]:
        return read_pictures(self.data)

    @cached_property
    def _chats(self) -> list[Chat]:
        return read_chats(self.data)

    @cached_property
    def _texts(self) -> dict[str, dict[str, list[str]]]:
        return read_texts(self.data)

    @cached_property
    def _held(self) -> dict[str, list[str]]:
        held = self._texts.get("heldout", {})
        return {language: cap_documents(texts, self.cfg.heldout_bytes) for language, texts in sorted(held.items())}

    @cached_property
    def _asker(self) -> Asker:
        pipeline = AnswerPipeline(self.model, self._engine)
        return Asker(pipeline, {picture.id: picture for picture in self._pictures}, read_clips(self.data))

    def bits(self) -> dict[str, Any]:
        """Bits per byte of the model and the baselines."""
        with progress("baselines", len(self._held) + 2) as done:
            bits = train_baselines(self._texts.get("train", {}), self._held, self.model.tokenizer, lambda: done(1))
        with progress("bits per byte", len(self._held)) as done:
            return bits_table({"model": model_bits(self.model, self._held, done), **bits}, self._held)

    def naming(self) -> dict[str, Any]:
        """Names of held-out pictures, open and closed; the language of the answers; the first pictures."""
        cfg = self.cfg
        trained: dict[str, set[str]] = {}
        known: dict[str, set[str]] = {}
        for picture in self._pictures:
            for language, name in picture.names.items():
                known.setdefault(language, set()).add(name)
                if picture.split == "train":
                    trained.setdefault(language, set()).add(normalise(name, language))
        judge = LanguageOfAnswers({language: sorted(names) for language, names in known.items()})
        splits: dict[str, Any] = {}
        if not self._sees:
            print("naming: left out, the model reads text alone")
        samples: list[dict[str, Any]] = []
        said: dict[str, list[str]] = {}
        for split in SPLITS:
            pictures = [picture for picture in self._pictures if self._sees and picture.split == split]
            asked = prepare(self._asker, self._chats, pictures, cfg.languages, count=cfg.pictures, pool=cfg.candidates)
            with progress(f"naming {split}", sum(len(one.prompts) for one in asked)) as done:
                answers = open_answers(self._asker, asked, max_tokens=cfg.answer_tokens, done=done)
            count = sum(min(len(one.prompts), cfg.closed_pictures) for one in asked)
            with progress(f"choosing {split}", count) as done:
                choices = closed_answers(self._asker, asked, count=cfg.closed_pictures, done=done)
            splits[split] = {
                "open": naming_table(asked, answers, trained, seed=cfg.seed),
                "closed": naming_table(asked, choices, trained, seed=cfg.seed),
            }
            samples += picture_samples(split, asked, answers, count=SAMPLE_PICTURES)
            for one, given in zip(asked, answers, strict=True):
                said.setdefault(one.language, []).extend(given)
        return {
            "rule": NAMING_RULE.format(candidates=cfg.candidates),
            "reachable_rule": REACHABLE_RULE,
            "splits": splits,
            "language": language_table(judge, said, cfg.languages),
            "samples": samples,
        }

    def tasks(self) -> dict[str, Any]:
        """Held-out chats with one right answer."""
        readable = [chat for chat in self._chats if self._sees or not shows(chat.messages)]
        if len(readable) < len(self._chats):
            print(f"questions: left out {len(self._chats) - len(readable):,} with pictures, the model reads text alone")
        selected = select(readable, count=self.cfg.chats)
        prompts = task_prompts(self._asker, selected)
        with progress("questions", len(prompts)) as done:
            answers = self._asker.ask(prompts, max_tokens=self.cfg.answer_tokens, done=done)
        return task_table(selected, answers, frequent_answers(self._chats))

    def samples(self) -> dict[str, Any]:
        """What the model says, to be read."""
        chats = select_chats(self._chats, each=SAMPLE_CHATS)
        limit = self.cfg.sample_tokens
        with progress("samples", len(chats) + len(self._held)) as done:
            return {
                "rule": SAMPLE_RULE,
                "continuations": continuations(
                    self._asker, self._held, max_tokens=limit, seed=self.cfg.seed, done=done
                ),
                "chats": chat_samples(self._asker, chats, max_tokens=limit, done=done),
            }


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal with rate and time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed or 0:.1f}/s")

    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
