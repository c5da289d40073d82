"""Fine-tuning batches: chats, and pieces of training documents beside them.

Which chats make which step is planned once, from their lengths; a chat is read and its pixels are cut only when a step
asks for it. Batch s is a function of (folder, config, s): resuming needs no state.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from herd.config import PretrainConfig, SftConfig
from herd.core.batch import Batch
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.loading.chat_rows import (
    READ,
    REFUSED,
    SHOWS,
    UNSEEN,
    TrainingChat,
    TrainingChats,
    chat_counts,
    turns_of,
    window_of,
)
from herd.data.loading.clip_shelf import ClipShelf
from herd.data.loading.pack import Sample, pack, steps_of
from herd.data.loading.picture_shelf import SEES_NONE, PictureShelf
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.selection import kept_numbers
from herd.data.media.image import ImageProcessor
from herd.data.tokens.chat import parts_of, render_messages
from herd.data.tokens.shards import tokenizer_hash
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError


class SftBatches:
    """Chats in the model's format, of which only the assistant's tokens are learnt, and some text, so that the model
    does not forget how to write.

    Raises HerdError where no chat is left to train on.
    """

    unit = "tokens"

    def __init__(self, folder: Path, config: SftConfig, tokenizer: Tokenizer, processor: ImageProcessor) -> None:
        self.config, self.tokenizer, self.processor = config, tokenizer, processor
        self.shelf = PictureShelf(folder, processor)
        self.clips = ClipShelf(folder, processor)
        self.left_out: dict[str, int] = {}
        """What of the data folder is not trained on, and how much of it."""
        replay_share = config.replay_share
        if replay_share and not tables.has(folder, "text"):
            what = f"tokens of replayed text, as the data folder has none: replay_share={replay_share} counts as 0"
            self.left_out[what] = int(config.num_tokens * replay_share)
            replay_share = 0.0
        self.chats = TrainingChats(folder)
        self._windows: list[tuple[int, int, int]] = []
        """Parts of chats that are too long: the chat, its first turn and the turn after the last."""
        numbers, lengths = self._fitting()
        chosen: list[np.ndarray] = []
        total = epoch = 0
        wanted = int(config.num_tokens * (1 - replay_share))
        replayed = config.num_tokens - wanted
        if config.max_epochs and wanted > (most := config.max_epochs * int(lengths.sum())):
            wanted, replayed = most, replayed * most // wanted
        while total < wanted:
            places = stream(config.seed, "chats", epoch).permutation(len(numbers))
            ends = total + np.cumsum(lengths[places])
            places = places[: int(np.searchsorted(ends, wanted)) + 1]
            chosen.append(places)
            total = int(ends[len(places) - 1])
            epoch += 1
        order = np.concatenate([np.empty(0, np.int64), *chosen])
        self.order = numbers[order]
        """The chats in the order in which they are shown; numbers behind those of the chats are windows."""
        chat_tokens = int(config.batch_tokens * (1 - replay_share))
        self.steps = steps_of(lengths[order], chat_tokens)
        self.num_steps = len(self.steps)
        replay = PretrainConfig(
            seed=config.seed + 1,  # another order than pre-training's
            num_tokens=max(1, replayed),
            batch_tokens=max(1, config.batch_tokens - chat_tokens),
            context=config.context,
            picture_share=0.0,
        )
        self.replay = PretrainBatches(folder, replay, tokenizer, processor) if replay_share else None
        if self.replay is not None:
            self.left_out |= self.replay.left_out

    def _fitting(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the chats and windows that are trained on, and their tokens; counts the others."""
        config, number = self.config, np.arange(len(self.chats))
        if selection := config.inputs().get("selection"):
            number = np.array(sorted(kept_numbers(selection, self.chats.folder)), np.int64)
            self.left_out["chats that the selection does not keep"] = len(self.chats) - len(number)
        counts = chat_counts(self.chats, self._format(), self._count)[number]
        kind = counts["kind"]
        is_whole = np.zeros(len(counts), np.int64)
        for place in np.flatnonzero(kind == SHOWS).tolist():
            is_whole[place] = self._is_whole(int(number[place]))
        tokens = np.take_along_axis(counts["tokens"], is_whole[:, None], 1)[:, 0].astype(np.int64)
        first = np.take_along_axis(counts["first"], is_whole[:, None], 1)[:, 0]
        is_read = kind <= SHOWS
        is_long = is_read & (tokens > config.context)
        long = f"chats of more than context={config.context} tokens"
        # Half of a picture's tokens would be of no picture.
        is_cut = is_long & (config.long_chats == "cut") & (kind == READ) & (first >= 0) & (first < config.context)
        has_none = is_read & ~is_long & (first < 0)
        left_out = Counter(
            {
                f"chats with pictures, {SEES_NONE}": int((kind == UNSEEN).sum()),
                "chats that the chat template refuses": int((kind == REFUSED).sum()),
                long: int((is_long & ~is_cut).sum()),
                f"{long}, cut": int(is_cut.sum()),
                "chats without an answer": int(has_none.sum()),
            }
        )
        window_tokens: list[int] = []
        if config.long_chats == "window":
            del left_out[long]
            for place in np.flatnonzero(is_long).tolist():
                self._cut_windows(int(number[place]), window_tokens, left_out, long)
        self.left_out |= {what: count for what, count in left_out.items() if count}
        fits = is_read & ~has_none & (~is_long | is_cut)
        windows = len(self.chats) + np.arange(len(self._windows))
        lengths = np.concatenate([np.minimum(tokens[fits], config.context), np.array(window_tokens, np.int64)])
        if not len(lengths):
            self._refuse(left_out, number[kind == REFUSED])
        return np.concatenate([number[fits], windows]), lengths

    def _refuse(self, left_out: Mapping[str, int], refused: np.ndarray) -> NoReturn:
        reason = ""
        if len(refused):
            try:
                self._render(self.chats[int(refused[0])])
            except HerdError as error:
                reason = f"; {error}"
        why = "; ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
        raise HerdError(
            f"{self.chats.folder}: no chat is left to train on ({why or 'it has none to train on'}{reason}): raise "
            "context, or give a data folder with other chats"
        )

    def _format(self) -> str:
        """All that the tokens of a chat depend on beside the data."""
        seen = self.processor.config if self.processor.reads_pictures else None
        return repr((tokenizer_hash(self.tokenizer), self.tokenizer.template, seen, self.config.frames_a_clip))

    def _count(self, chat: TrainingChat) -> tuple[list[int], list[int], int]:
        """A row of COUNTS."""
        kinds = {part["type"] for message in chat.messages for part in parts_of(message)} - {"text"}
        if kinds and not self.processor.reads_pictures:
            return [0, 0], [-1, -1], UNSEEN
        try:
            one = self._render(chat, whole=False)
            samples = [one, self._render(chat, whole=True) if "image" in kinds else one]
        except HerdError:
            return [0, 0], [-1, -1], REFUSED
        first = [int(sample.learnt.argmax()) if sample.learnt.any() else -1 for sample in samples]
        return [len(sample.ids) for sample in samples], first, SHOWS if kinds else READ

    def _cut_windows(self, number: int, tokens: list[int], left_out: Counter[str], long: str) -> None:
        """A chat that is too long as several, each of the system message and as many turns in a row as fit. A turn that
        does not fit by itself is left out. Their tokens go to `tokens`."""
        chat = self.chats[number]
        found: list[tuple[int, int, int]] = []
        lengths: list[int] = []
        begin = 0
        try:
            for turn in range(len(turns_of(chat))):
                for start in sorted({begin, turn}):
                    length = len(self._render(window_of(chat, start, turn + 1)).ids)
                    if length <= self.config.context:
                        if start == turn:
                            found.append((number, start, turn + 1))
                            lengths.append(length)
                        else:
                            found[-1], lengths[-1] = (number, start, turn + 1), length
                        begin = start
                        break
                else:
                    begin = turn + 1
        except HerdError:
            left_out["chats that the chat template refuses"] += 1
            return
        left_out[f"{long}, split into {len(found)}"] += 1
        self._windows += found
        tokens += lengths

    def _chat(self, number: int) -> TrainingChat:
        if number < len(self.chats):
            return self.chats[number]
        whole, begin, end = self._windows[number - len(self.chats)]
        return window_of(self.chats[whole], begin, end)

    def _is_whole(self, number: int) -> bool:
        """Whether the pictures of a chat are whole. It is the chat's own, so that lengths are known beforehand."""
        return bool(stream(self.config.seed, "whole", number).random() > self.config.tiled_share)

    def _render(
        self, chat: TrainingChat, rng: np.random.Generator | None = None, *, whole: bool | None = None
    ) -> Sample:
        """A chat with its pictures; without a generator, with blank ones of the same layout."""
        whole = self._is_whole(chat.number) if whole is None else whole

        def opened(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] == "image":
                place = self.shelf.rows.find(part["picture"])
                assert place is not None
                if rng is None:
                    return {"type": "image", "image": self.shelf.blank(place, whole=whole)}
                return {"type": "image", "image": self.shelf.tiles(place, rng, whole=whole)}
            if part["type"] == "video":
                clip, count = self.clips.rows.find(part["clip"]), self.config.frames_a_clip
                assert clip is not None
                cut = self.clips.blank(clip, count) if rng is None else self.clips.frames(clip, count)
                return {"type": "video", "frames": cut}
            return part

        shown = [
            {**m, "content": [opened(part) for part in m["content"]]} if isinstance(m.get("content"), list) else m
            for m in chat.messages
        ]
        rendered = render_messages(self.tokenizer, self.processor, shown, tools=chat.tools, add_generation_prompt=False)
        return Sample(
            ids=np.array(rendered.ids, dtype=np.int32),
            learnt=np.array(rendered.learnt),
            kind="picture" if rendered.tiles else "chat",
            tiles=rendered.tiles,
        )

    def _cut(self, sample: Sample) -> Sample:
        """The sample without what is behind the context, of a chat that was chosen to be cut."""
        end = self.config.context
        return sample if len(sample.ids) <= end else replace(sample, ids=sample.ids[:end], learnt=sample.learnt[:end])

    def batch(self, step: int) -> Batch:
        """The batch of step `step`."""
        samples = [
            self._cut(self._render(self._chat(int(self.order[place])), stream(self.config.seed, "chat", place)))
            for place in self.steps[step]
        ]
        if self.replay is not None and step < self.replay.num_steps:
            samples += self.replay.samples(step, self.config.replay_weight)
        return pack(samples, patch_id=self.tokenizer.ids.patch)
