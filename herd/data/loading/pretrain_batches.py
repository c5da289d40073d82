"""Pre-training batches: pieces of documents, and pictures with their names in several languages.

Which pieces make which step is planned from lengths alone, window by window, when a step asks for it; tokens are read
from the shards and pixels are cut for that step only. Batch s is a function of (folder, config, s): resuming needs no
state.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from herd.config import PretrainConfig
from herd.core.batch import Batch
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.loading.pack import Sample, pack
from herd.data.loading.picture_shelf import SEES_NONE, PictureShelf
from herd.data.loading.text_plan import Pieces, TextPlan, join_pieces
from herd.data.loading.windows import Window, cut_run, deal_out
from herd.data.media.image import ImageProcessor, Tiles
from herd.data.tokens.chat import header, render_messages
from herd.data.tokens.shard_folders import open_shards
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError

PICTURES_COUNTED = 256
"""Pictures by which the tokens of one are estimated."""


@dataclass(frozen=True, kw_only=True)
class PicturePiece:
    """A planned picture with its names: ids are known, its pixels are not yet cut."""

    ids: np.ndarray
    learnt: np.ndarray
    picture: int
    whole: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a window shows: pieces of text and pictures, numbered in this order."""

    window: Window
    text: Pieces
    pictures: list[PicturePiece]
    order: np.ndarray
    """The numbers of what is shown, in the order in which it is."""
    steps: list[range]
    """The places in `order` of each step."""


class PretrainBatches:
    """Documents in pieces of at most `context` tokens, and pictures followed by their names; for a model of text alone
    documents only. `questions` ask for a picture's name, by language; names in other languages are only listed.

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
        questions: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.tokenizer, self.questions = tokenizer, questions
        self.shelf = PictureShelf(folder, processor)
        self.left_out: dict[str, int] = {}
        """What of the data folder is not trained on, and how much of it."""
        if (config.picture_share or any(config.schedule)) and not processor.reads_pictures:
            asked = f"schedule={config.schedule}" if config.schedule else f"picture_share={config.picture_share}"
            self.left_out[f"pictures, {SEES_NONE}: {asked} counts as 0"] = len(self.shelf.names)
            config = replace(config, picture_share=0.0, schedule=())
        if (config.picture_share or any(config.schedule)) and not tables.has(folder, "pictures"):
            asked = f"schedule={config.schedule}" if config.schedule else f"picture_share={config.picture_share}"
            share = sum(config.schedule) / len(config.schedule) if config.schedule else config.picture_share
            what = f"tokens of pictures, as the data folder has none: {asked} counts as 0"
            self.left_out[what] = int(config.num_tokens * share)
            config = replace(config, picture_share=0.0, schedule=())
        self.config = config
        self._cache: dict[str, list[int]] = {}
        self._plans: dict[int, Plan] = {}
        self.windows = self._cut_run(folder, config.num_tokens)
        if self.windows[-1].pictures[1]:
            if not self.shelf.names:
                raise HerdError(f"{folder} has no picture with a name to train on: set picture_share=0")
            if nameless := len(self.shelf.rows) - len(self.shelf.names):
                self.left_out["pictures without a name"] = nameless
        self.num_steps = self.windows[-1].first_step + len(self.plan(self.windows[-1]).steps)

    def _cut_run(self, folder: Path, num_tokens: int) -> list[Window]:
        """The windows of a run, which ends sooner where caps on epochs leave too little text."""
        config = self.config
        shares = config.schedule or (config.picture_share,)
        windows = cut_run(num_tokens, config.batch_tokens, shares, config.shuffle_tokens)
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
        return cut_run(num_tokens, config.batch_tokens, shares, config.shuffle_tokens)

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
        pictures = self._pictures(window)
        again = [window.number] if window.number else []
        order = stream(config.seed, "order", *again).permutation(len(text) + len(pictures))
        lengths = np.concatenate([text.lengths_P, np.array([len(piece.ids) for piece in pictures], dtype=np.int64)])
        steps = deal_out(lengths[order], config.batch_tokens, window.num_steps)
        return Plan(window=window, text=text, pictures=pictures, order=order, steps=steps)

    def _pictures(self, window: Window) -> list[PicturePiece]:
        """Each picture again and again, with its names in a few languages of the many."""
        config, (before, end) = self.config, window.pictures
        wanted = end - before
        pieces: list[PicturePiece] = []
        total, many = 0, len(self.shelf.names)
        epoch, place = divmod(round(before / self._picture_tokens), many) if before and wanted else (0, 0)
        while total < wanted:
            rng = stream(config.seed, "pictures", epoch)
            order = rng.permutation(many)[place:]
            if window.number:
                rng = stream(config.seed, "pictures", epoch, window.number)
            for index in order:
                pieces.append(self._picture(int(index), rng))
                total += len(pieces[-1].ids)
                if total >= wanted:
                    break
            epoch, place = epoch + 1, 0
        return pieces

    @cached_property
    def _picture_tokens(self) -> float:
        """Tokens of a picture with its names, about: where a window begins among the pictures."""
        rng = stream(self.config.seed, "picture tokens")
        indices = rng.permutation(len(self.shelf.names))[:PICTURES_COUNTED]
        return float(np.mean([len(self._picture(int(index), rng).ids) for index in indices]))

    def _picture(self, index: int, rng: np.random.Generator) -> PicturePiece:
        config, names = self.config, self.shelf.names[index]
        whole = not self.shelf.is_large(index) or rng.random() > config.tiled_share
        asked = rng.random() < config.asked_share and any(language in self.questions for language in names)
        if asked:
            names = {language: name for language, name in names.items() if language in self.questions}
        count = config.names_asked if asked else config.names_a_picture
        chosen = {(lang := sorted(names)[i]): names[lang] for i in rng.permutation(len(names))[:count]}
        blank = self.shelf.blank(index, whole=whole)
        shown = self.shelf.processor.tokens(blank)
        if not asked:
            ids, learnt = self._listed(chosen, shown)
        elif self.tokenizer.template is None:
            ids, learnt = self._asked(chosen, shown, rng)
        else:
            ids, learnt = self._asked_by_template(chosen, blank, rng)
        return PicturePiece(ids=np.array(ids, dtype=np.int32), learnt=np.array(learnt), picture=index, whole=whole)

    def _encoded(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text)
        return self._cache[text]

    def _listed(self, names: dict[str, str], shown: list[str]) -> tuple[list[int], list[bool]]:
        """A picture and lines of languages and names. A name begins its line, as it begins an answer: after a space its
        tokens would be others."""
        special, own = self.tokenizer.special, self.tokenizer.ids
        given = [own.bos, *(special[token] for token in shown)]
        lines = [token for language, name in names.items() for token in self._encoded(f"{language}\n{name}\n")]
        ids = [*given, *lines, own.end_of_text]
        return ids, [False] * len(given) + [True] * (len(ids) - len(given))

    def _asked(self, names: dict[str, str], shown: list[str], rng: np.random.Generator) -> tuple[list[int], list[bool]]:
        """A chat about a picture in Llama 4's format: its name is asked for in one language after the other."""
        special = self.tokenizer.special
        ids, learnt = [special["<|begin_of_text|>"]], [False]
        for turn, (language, name) in enumerate(names.items()):
            question = self.questions[language][int(rng.integers(len(self.questions[language])))]
            picture = [special[token] for token in shown] if turn == 0 else []
            ids += [*header(self.tokenizer, "user"), *picture, *self._encoded(question), special["<|eot|>"]]
            ids += header(self.tokenizer, "assistant")
            learnt += [False] * (len(ids) - len(learnt))
            ids += [*self._encoded(name), special["<|eot|>"]]
            learnt += [True] * (len(ids) - len(learnt))
        return ids, learnt

    def _asked_by_template(
        self, names: dict[str, str], blank: Tiles, rng: np.random.Generator
    ) -> tuple[list[int], list[bool]]:
        """The same in the model's own format."""
        messages: list[dict[str, Any]] = []
        for language, name in names.items():
            question = self.questions[language][int(rng.integers(len(self.questions[language])))]
            shown = [] if messages else [{"type": "image", "image": blank}]
            messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": name})
        rendered = render_messages(self.tokenizer, self.shelf.processor, messages, add_generation_prompt=False)
        return rendered.ids, rendered.learnt

    def samples(self, step: int, text_weight: float = 1.0) -> list[Sample]:
        """The documents of step `step`; `text_weight` is what each learnt token of text weighs."""
        number = bisect_right(self.windows, step, key=lambda window: window.first_step) - 1
        plan = self.plan(self.windows[number])
        places = plan.steps[step - plan.window.first_step]
        return [self._sample(plan, place, text_weight) for place in places]

    def _sample(self, plan: Plan, place: int, text_weight: float) -> Sample:
        index = int(plan.order[place])
        if index < len(plan.text):
            text = plan.text
            stretch = int(text.documents_P[index]), int(text.begins_P[index]), int(text.ends_P[index])
            ids = self.shards.tokens(*stretch).astype(np.int32)
            return Sample(ids=ids, learnt=np.ones(len(ids), dtype=bool), kind="text", weight=text_weight)
        piece = plan.pictures[index - len(plan.text)]
        rng = stream(self.config.seed, "view", *([plan.window.number] if plan.window.number else []), place)
        tiles = [self.shelf.tiles(piece.picture, rng, whole=piece.whole)]
        return Sample(
            ids=piece.ids, learnt=piece.learnt, kind="picture", tiles=tiles, weight=self.config.picture_weight
        )

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
