"""Pre-training batches: pieces of documents, pictures and clips with their names in several languages.

Which pieces make which step is planned from lengths alone, window by window, when a step asks for it; tokens are read
from the shards and pixels are cut for that step only. Batch s is a function of (folder, config, s): resuming needs no
state.
"""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from herd.config import PretrainConfig
from herd.core.batch import Batch
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.loading.clip_shelf import ClipShelf
from herd.data.loading.named import ClipPiece, NamedStream, NameWriter, PicturePiece, Questions
from herd.data.loading.pack import Sample, pack
from herd.data.loading.picture_shelf import SEES_NONE, PictureShelf
from herd.data.loading.text_plan import Pieces, TextPlan, join_pieces
from herd.data.loading.windows import Window, cut_run, deal_out
from herd.data.media.image import ImageProcessor
from herd.data.tokens.shard_folders import open_shards
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError

TABLES = {"picture": "pictures", "video": "clips"}
"""By the name of a share: the table that fills it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a window shows: pieces of text, pictures and clips, numbered in this order."""

    window: Window
    text: Pieces
    pictures: list[PicturePiece]
    clips: list[ClipPiece]
    order: np.ndarray
    """The numbers of what is shown, in the order in which it is."""
    steps: list[range]
    """The places in `order` of each step."""


class PretrainBatches:
    """Documents in pieces of at most `context` tokens, and pictures and clips followed by their names; for a model of
    text alone documents only. `questions` ask for a picture's name, `clip_questions` for a clip's, by language; names
    in other languages are only listed.

    Raises HerdError where a share has nothing to be filled with.
    """

    unit = "tokens"

    def __init__(
        self,
        folder: Path,
        config: PretrainConfig,
        tokenizer: Tokenizer,
        processor: ImageProcessor,
        *,
        questions: Questions = MappingProxyType({}),
        clip_questions: Questions = MappingProxyType({}),
    ) -> None:
        self.tokenizer, self.questions, self.clip_questions = tokenizer, questions, clip_questions
        self.shelf = PictureShelf(folder, processor)
        self.clip_shelf = ClipShelf(folder, processor) if any(videos for _, videos in config.shares) else None
        self.left_out: dict[str, int] = {}
        """What of the data folder is not trained on, and how much of it."""
        self.config = config = self._without_what_is_missing(folder, config, processor)
        self._writer = NameWriter(config, tokenizer, processor)
        self._pictures = NamedStream("picture", self.shelf.rows.num_named, config.seed, self._picture)
        clips = self.clip_shelf.rows.num_named if self.clip_shelf else 0
        self._clips = NamedStream("clip", clips, config.seed, self._clip)
        self._plans: dict[int, Plan] = {}
        self.windows = self._cut_run(folder, config.num_tokens)
        for kind, end, shelf in (
            ("picture", self.windows[-1].pictures[1], self.shelf),
            ("video", self.windows[-1].clips[1], self.clip_shelf),
        ):
            if end and shelf is not None:
                what = TABLES[kind]
                if not shelf.rows.num_named:
                    raise HerdError(f"{folder} has no {what[:-1]} with a name to train on: set {kind}_share=0")
                if nameless := len(shelf.rows) - shelf.rows.num_named:
                    self.left_out[f"{what} without a name"] = nameless
        self.num_steps = self.windows[-1].first_step + len(self.plan(self.windows[-1]).steps)

    def _without_what_is_missing(
        self, folder: Path, config: PretrainConfig, processor: ImageProcessor
    ) -> PretrainConfig:
        """The config without the shares of what the model does not see or the folder does not have."""
        shelves = {"picture": self.shelf, "video": self.clip_shelf}
        for place, (kind, what) in enumerate(TABLES.items()):
            shares, shelf = [part[place] for part in config.shares], shelves[kind]
            if not any(shares) or shelf is None:
                continue
            schedule = getattr(config, f"{kind}_schedule")
            asked = f"{kind}_schedule={schedule}" if schedule else f"{kind}_share={shares[0]}"
            if not processor.reads_pictures:
                if shelf.rows.num_named:
                    self.left_out[f"{what}, {SEES_NONE}: {asked} counts as 0"] = shelf.rows.num_named
            elif not tables.has(folder, what):
                tokens = int(config.num_tokens * (sum(shares) / len(shares)))
                self.left_out[f"tokens of {what}, as the data folder has none: {asked} counts as 0"] = tokens
            else:
                continue
            none: dict[str, Any] = {f"{kind}_share": 0.0, f"{kind}_schedule": ()}
            config = replace(config, **none)
        return config

    def _cut_run(self, folder: Path, num_tokens: int) -> list[Window]:
        """The windows of a run, which ends sooner where caps on epochs leave too little text."""
        config = self.config
        windows = cut_run(num_tokens, config.batch_tokens, config.shares, config.shuffle_tokens)
        wanted = windows[-1].text[1]
        if not wanted:
            return windows
        self.shards = open_shards(folder, self.tokenizer)
        if not len(self.shards):
            raise HerdError(f"{folder} has no text to train on: give a data folder with text, or a share of 0")
        self.text = TextPlan(self.shards, config, wanted)
        self.left_out |= self.text.left_out
        if self.text.tokens == wanted:
            return windows
        num_tokens = num_tokens * self.text.tokens // wanted
        return cut_run(num_tokens, config.batch_tokens, config.shares, config.shuffle_tokens)

    def plan(self, window: Window) -> Plan:
        """What a window shows; the last plans are kept."""
        if (plan := self._plans.get(window.number)) is None:
            plan = self._make_plan(window)
            # A thread that works ahead may be in one window and the loop in the one before.
            self._plans = {number: kept for number, kept in self._plans.items() if number == window.number - 1}
            self._plans[window.number] = plan
        return plan

    def _make_plan(self, window: Window) -> Plan:
        config, (begin, end), total = self.config, window.text, self.windows[-1].text[1]
        text = self.text.window(begin / total, end / total) if end > begin else join_pieces([])
        pictures = self._pictures.pieces(*window.pictures, window.number)
        clips = self._clips.pieces(*window.clips, window.number)
        again = [window.number] if window.number else []
        shown = np.array([len(piece.ids) for piece in (*pictures, *clips)], dtype=np.int64)
        order = stream(config.seed, "order", *again).permutation(len(text) + len(shown))
        lengths = np.concatenate([text.lengths_P, shown])
        steps = deal_out(lengths[order], config.batch_tokens, window.num_steps)
        return Plan(window=window, text=text, pictures=pictures, clips=clips, order=order, steps=steps)

    def _picture(self, index: int, rng: np.random.Generator) -> PicturePiece:
        whole = not self.shelf.is_large(index) or rng.random() > self.config.tiled_share
        part = {"type": "image", "image": self.shelf.blank(index, whole=whole)}
        written = self._writer.write(part, self.shelf.rows.names(index), self.questions, rng)
        return PicturePiece(**written, picture=index, whole=whole)

    def _clip(self, index: int, rng: np.random.Generator) -> ClipPiece:
        assert self.clip_shelf is not None
        part = {"type": "video", "frames": self.clip_shelf.blank(index, self.config.frames_a_clip)}
        written = self._writer.write(part, self.clip_shelf.rows.names(index), self.clip_questions, rng)
        return ClipPiece(**written, clip=index)

    def step_places(self, step: int) -> tuple[Plan, range]:
        """The plan that a step is in, and the places of what it shows."""
        number = bisect_right(self.windows, step, key=lambda window: window.first_step) - 1
        plan = self.plan(self.windows[number])
        return plan, plan.steps[step - plan.window.first_step]

    def samples(self, step: int, text_weight: float = 1.0) -> list[Sample]:
        """The documents of step `step`; `text_weight` is what each learnt token of text weighs."""
        plan, places = self.step_places(step)
        return [self._sample(plan, place, text_weight) for place in places]

    def sample(self, window: int, place: int) -> Sample:
        """What a window shows at one place."""
        return self._sample(self.plan(self.windows[window]), place, 1.0)

    def stretch(self, plan: Plan, place: int) -> tuple[int, int] | None:
        """The document at a place, and its first token there; None for a picture or clip."""
        index, text = int(plan.order[place]), plan.text
        return (int(text.documents_P[index]), int(text.begins_P[index])) if index < len(text) else None

    def shown_piece(self, plan: Plan, place: int) -> PicturePiece | ClipPiece:
        """The picture or clip at a place, with its names."""
        index = int(plan.order[place]) - len(plan.text)
        return plan.pictures[index] if index < len(plan.pictures) else plan.clips[index - len(plan.pictures)]

    def shown_key(self, plan: Plan, place: int) -> int:
        """64 bits of what the sample of a picture or clip depends on: its view, its names and their form."""
        piece, config = self.shown_piece(plan, place), self.config
        what: tuple[str, int]
        if isinstance(piece, PicturePiece):
            what = (self.shelf.rows.id(piece.picture), piece.whole)
        else:
            assert self.clip_shelf is not None
            what = (self.clip_shelf.rows.id(piece.clip), config.frames_a_clip)
        spot = (config.seed, plan.window.number, place, *what)
        digest = hashlib.blake2b(repr(spot).encode() + piece.ids.tobytes(), digest_size=8)
        return int.from_bytes(digest.digest(), "little")

    def _sample(self, plan: Plan, place: int, text_weight: float) -> Sample:
        index = int(plan.order[place])
        if index < len(plan.text):
            text = plan.text
            stretch = int(text.documents_P[index]), int(text.begins_P[index]), int(text.ends_P[index])
            ids = self.shards.tokens(*stretch).astype(np.int32)
            return Sample(ids=ids, learnt=np.ones(len(ids), dtype=bool), kind="text", weight=text_weight)
        rng = stream(self.config.seed, "view", *([plan.window.number] if plan.window.number else []), place)
        weight, index = self.config.picture_weight, index - len(plan.text)
        if index < len(plan.pictures):
            piece = plan.pictures[index]
            tiles = [self.shelf.tiles(piece.picture, rng, whole=piece.whole)]
            return Sample(ids=piece.ids, learnt=piece.learnt, kind="picture", tiles=tiles, weight=weight)
        clip = plan.clips[index - len(plan.pictures)]
        assert self.clip_shelf is not None
        frames = self.clip_shelf.frames(clip.clip, self.config.frames_a_clip, rng)
        tiles = [frame for _, frame in frames]
        return Sample(ids=clip.ids, learnt=clip.learnt, kind="video", tiles=tiles, weight=weight)

    def batch(self, step: int) -> Batch:
        """The batch of step `step`."""
        return pack(self.samples(step), patch_id=self.tokenizer.ids.patch)

    @property
    def packing_waste(self) -> float:
        """Of the text of the first window, the share of tokens that predict nothing because their document is cut
        behind them, or that are left out as single ends. Batches have no padding."""
        text = self.plan(self.windows[0]).text
        if not len(text):
            return 0.0
        left = self.shards.lengths(text.documents_P) - text.ends_P
        return float((np.count_nonzero(left) + np.count_nonzero(left == 1)) / text.lengths_P.sum())
