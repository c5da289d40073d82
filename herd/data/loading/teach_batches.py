"""What a teacher reads: the documents and pictures that a student's plan shows, each once.

Documents are read in pieces of `context` tokens from their beginnings, as the student sees them in its first epoch;
later epochs, cut at other places, find the same rows. Pictures are the student's own views, with the names drawn for
them. Steps are in the order of the rows, so a killed run goes on where it was.
"""

# N tokens, K draws of a token, D documents, P pieces

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from herd.config import TeachConfig
from herd.core.batch import Batch
from herd.core.streams import seed_of
from herd.data.loading.pack import Sample, pack, steps_of
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.teacher_rows import KEYS, PICTURES, TEXT, uniforms
from herd.errors import HerdError

GROUP = 2**20
"""Documents whose pieces are known at a time."""
READ_TOKENS = 8192
"""Tokens of a step: another number changes no row."""


@dataclass(frozen=True, kw_only=True)
class TeachBatch(Batch):
    """Tokens that a teacher reads; those with a weight get a row."""

    rows_N: Tensor
    """int64, the number of a token's row; -1 without one."""
    uniforms_NK: Tensor
    """float64, what its draws are made from."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures and clips of a student's plan, in its order."""

    windows: list[int]
    places: list[int]
    keys: np.ndarray
    """uint64."""
    tokens: np.ndarray
    """int64, tokens of each with its names."""
    rows: np.ndarray
    """int64, learnt tokens of each."""


class TeachBatches:
    """Text first, then pictures. `first_rows` of each document, -1 where it is not read; `pictures` and their first
    rows `picture_rows`; `num_rows` in all."""

    unit = "tokens"

    def __init__(self, student: PretrainBatches, config: TeachConfig) -> None:
        self.student, self.config = student, config
        self._seed = seed_of(config.seed, "draws")
        self.documents_D, self.first_rows = taught_documents(student)
        lengths = student.shards.lengths(self.documents_D) if len(self.documents_D) else np.zeros(0, dtype=np.int64)
        self._groups: list[tuple[int, int]] = []
        """Of each group of documents: its first step, and the place of its first document."""
        steps = 0
        for begin in range(0, len(self.documents_D), GROUP):
            self._groups.append((steps, begin))
            pieces = pieces_of(lengths[begin : begin + GROUP] - 1, config.context)
            steps += len(steps_of(pieces[2] - pieces[1], READ_TOKENS))
        self.num_text_steps = steps
        self.num_text_rows = int((lengths - 1).sum())
        self.pictures = list_pictures(student)
        self.picture_rows = self.num_text_rows + np.cumsum(self.pictures.rows) - self.pictures.rows
        self._picture_steps = steps_of(self.pictures.tokens, READ_TOKENS) if len(self.pictures.keys) else []
        self.num_rows = self.num_text_rows + int(self.pictures.rows.sum())
        self.num_steps = self.num_text_steps + len(self._picture_steps)
        self._group: tuple[int, tuple[np.ndarray, ...], list[range]] | None = None
        if not self.num_rows:
            raise HerdError("there is nothing for the teacher to read: the student's plan has no token to predict")

    def batch(self, step: int) -> TeachBatch:
        """The batch of step `step`."""
        if step >= self.num_text_steps:
            return self._pictures(self._picture_steps[step - self.num_text_steps])
        return self._text(step)

    def _text(self, step: int) -> TeachBatch:
        number = max(n for n, (first, _) in enumerate(self._groups) if first <= step)
        first_step, begin = self._groups[number]
        if self._group is None or self._group[0] != number:
            documents = self.documents_D[begin : begin + GROUP]
            of_P, begins_P, ends_P = pieces_of(self.student.shards.lengths(documents) - 1, self.config.context)
            steps = steps_of(ends_P - begins_P, READ_TOKENS)
            self._group = number, (documents[of_P], begins_P, ends_P), steps
        _, pieces, steps = self._group
        here = steps[step - first_step]
        samples, targets = [], []
        for document, first, last in zip(*(x[here.start : here.stop].tolist() for x in pieces), strict=True):
            ids = self.student.shards.tokens(document, first, last + 1).astype(np.int64)
            samples.append(Sample(ids=ids[:-1], learnt=np.ones(len(ids) - 1, dtype=bool), kind="text"))
            targets.append(ids[1:])
        plain = pack(samples, patch_id=None)
        row = int(self.first_rows[pieces[0][here.start]]) + int(pieces[1][here.start])
        fields = {**vars(plain), "targets_N": torch.from_numpy(np.concatenate(targets))}
        fields |= {"weights_N": torch.ones_like(plain.weights_N), "total_weight": None}
        return self._with_rows(fields, np.arange(row, row + len(plain.tokens_N)))

    def _pictures(self, here: range) -> TeachBatch:
        samples = [self.student.sample(self.pictures.windows[i], self.pictures.places[i]) for i in here]
        plain = pack(samples, patch_id=self.student.tokenizer.ids.patch)
        rows_N = np.full(len(plain.tokens_N), -1, dtype=np.int64)
        learnt = np.flatnonzero(plain.weights_N.numpy())
        rows_N[learnt] = int(self.picture_rows[here.start]) + np.arange(len(learnt))
        return self._with_rows(vars(plain), rows_N)

    def _with_rows(self, fields: dict[str, object], rows_N: np.ndarray) -> TeachBatch:
        there, count = np.flatnonzero(rows_N >= 0), self.config.draws
        uniforms_NK = np.zeros((len(rows_N), count))
        if len(there):
            uniforms_NK[there] = uniforms(self._seed, int(rows_N[there[0]]), len(there), count)
        return TeachBatch(**fields, rows_N=torch.from_numpy(rows_N), uniforms_NK=torch.from_numpy(uniforms_NK))  # type: ignore[arg-type]


def taught_documents(student: PretrainBatches) -> tuple[np.ndarray, np.ndarray]:
    """The documents that a plan shows, ascending, and the first row of every document of the shards, -1 without."""
    if not student.windows[-1].text[1]:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    shown = np.zeros(len(student.shards), dtype=bool)
    for window in student.windows:
        shown[student.plan(window).text.documents_P] = True
    documents = np.flatnonzero(shown)
    rows = student.shards.lengths(documents) - 1
    first_rows = np.full(len(shown), -1, dtype=np.int64)
    first_rows[documents] = np.cumsum(rows) - rows
    return documents, first_rows


def pieces_of(positions_D: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of documents with so many positions that predict: of each piece its document's number, and the first position and
    the one after its last."""
    counts = -(-positions_D // context)
    of_P = np.repeat(np.arange(len(positions_D)), counts)
    begins_P = (np.arange(len(of_P)) - np.repeat(np.cumsum(counts) - counts, counts)) * context
    return of_P, begins_P, np.minimum(begins_P + context, positions_D[of_P])


def list_pictures(student: PretrainBatches) -> Pictures:
    """All pictures of a plan."""
    windows, places, keys, tokens, rows = [], [], [], [], []
    for window in student.windows:
        plan = student.plan(window)
        for place in np.flatnonzero(plan.order >= len(plan.text)).tolist():
            piece = student.shown_piece(plan, place)
            windows.append(window.number)
            places.append(place)
            keys.append(student.shown_key(plan, place))
            tokens.append(len(piece.ids))
            rows.append(int(np.count_nonzero(piece.learnt[1:])))
    return Pictures(
        windows=windows,
        places=places,
        keys=np.array(keys, dtype=np.uint64),
        tokens=np.array(tokens, dtype=np.int64),
        rows=np.array(rows, dtype=np.int64),
    )


def write_index(folder: Path, batches: TeachBatches) -> None:
    """Where the rows of each document and picture are."""
    order = np.argsort(batches.pictures.keys)
    np.save(folder / TEXT, batches.first_rows)
    np.save(folder / KEYS, batches.pictures.keys[order])
    np.save(folder / PICTURES, batches.picture_rows[order])
