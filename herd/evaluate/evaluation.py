"""A model with its engine beside a data folder: what the sections of an evaluation work on."""

from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from herd.config import EvaluateConfig
from herd.data.loading.tables import Picture
from herd.data.tasks.chats import Chat
from herd.engine.load import load
from herd.engine.pipeline import AnswerPipeline
from herd.errors import unknown
from herd.evaluate.bits import cap_documents
from herd.evaluate.inputs import TRAIN, DataFolder
from herd.evaluate.questions import Asker, has_media

MAX_NUM_SEQS = 48  # questions that are answered at once
MAX_MODEL_LEN = 2048  # tokens of a question with its answer: a clip of eight frames fits


class Evaluation:
    """The model is loaded at once, tables of the data folder when a section first needs them."""

    def __init__(self, cfg: EvaluateConfig, model: Path, data: Path) -> None:
        self.cfg, self.data = cfg, DataFolder(data)
        self.model = load(model, base=cfg.inputs().get("base"))
        self._engine = self.model.engine(
            max_num_seqs=MAX_NUM_SEQS, max_model_len=min(self.model.config.max_positions, MAX_MODEL_LEN)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()

    @property
    def reads_pictures(self) -> bool:
        return self.model.processor.reads_pictures

    @cached_property
    def heldout_texts(self) -> dict[str, list[str]]:
        """Held-out documents by language, up to `heldout_bytes` of each."""
        texts = sorted(self.data.heldout_texts.items())
        return {language: cap_documents(documents, self.cfg.heldout_bytes) for language, documents in texts}

    @cached_property
    def heldout_pictures(self) -> dict[str, list[Picture]]:
        """Held-out pictures with names, by split."""
        splits: dict[str, list[Picture]] = {}
        for picture in self.data.pictures:
            if picture.split != TRAIN and picture.names:
                splits.setdefault(picture.split, []).append(picture)
        return dict(sorted(splits.items()))

    @cached_property
    def naming_languages(self) -> tuple[str, ...]:
        """The languages in which pictures are named. Raises HerdError for one in which no picture has a name."""
        known = {language for picture in self.data.pictures for language in picture.names}
        for language in self.cfg.languages:
            if language not in known:
                raise unknown(f"language in {self.data.path / 'pictures.parquet'}:", language, known)
        held = {language for of in self.heldout_pictures.values() for picture in of for language in picture.names}
        return self.cfg.languages or tuple(sorted(held))

    @cached_property
    def heldout_chats(self) -> list[Chat]:
        """Held-out chats that the model can read: for a model of text alone those without pictures."""
        held = [chat for chat in self.data.chats if chat.split != TRAIN]
        return [chat for chat in held if self.reads_pictures or not has_media(chat.messages)]

    @cached_property
    def num_unreadable(self) -> int:
        """Held-out chats that the model cannot read."""
        return sum(chat.split != TRAIN for chat in self.data.chats) - len(self.heldout_chats)

    @cached_property
    def asker(self) -> Asker:
        pictures = {picture.id: picture for picture in self.data.pictures}
        return Asker(AnswerPipeline(self.model, self._engine), pictures, self.data.clips)
