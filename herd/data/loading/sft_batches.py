"""Fine-tuning batches: chats, and pieces of training documents beside them.

Which chats make which step is planned once, from their lengths; pixels are cut only when a step asks for them. Batch s
is a function of (folder, config, s): resuming needs no state.
"""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from herd.config import PretrainConfig, SftConfig
from herd.core.batch import Batch
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.loading.clip_shelf import ClipShelf
from herd.data.loading.pack import Sample, pack, steps_of
from herd.data.loading.picture_shelf import SEES_NONE, PictureShelf
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.selection import kept_numbers
from herd.data.media.image import ImageProcessor
from herd.data.tokens.chat import parts_of, render_messages
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class TrainingChat:
    """A conversation to learn, and the tools that it offers."""

    number: int
    """Of the row that it comes from, which decides how its pictures are cut."""
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)


def training_chats(folder: Path) -> list[TrainingChat]:
    """The training chats of a data folder."""
    rows = tables.read(folder, "chats", ["split", "messages"], optional=["tools"])
    return [
        TrainingChat(number=number, messages=json.loads(row["messages"]), tools=json.loads(row.get("tools") or "[]"))
        for number, row in enumerate(row for row in rows if row["split"] == "train")
    ]


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
        self.chats = training_chats(folder)
        if selection := config.inputs().get("selection"):
            kept = kept_numbers(selection, folder)
            self.left_out["chats that the selection does not keep"] = len(self.chats) - len(kept)
            self.chats = [chat for chat in self.chats if chat.number in kept]
        lengths = self._lengths(folder)
        fitting = list(lengths)
        order: list[int] = []
        total = epoch = 0
        wanted = int(config.num_tokens * (1 - replay_share))
        replayed = config.num_tokens - wanted
        if config.max_epochs and wanted > (most := config.max_epochs * sum(lengths.values())):
            wanted, replayed = most, replayed * most // wanted
        while total < wanted:
            for index in stream(config.seed, "chats", epoch).permutation(fitting):
                order.append(int(index))
                total += lengths[index]
                if total >= wanted:
                    break
            epoch += 1
        self.order = order
        chat_tokens = int(config.batch_tokens * (1 - replay_share))
        self.steps = steps_of(np.array([lengths[index] for index in order]), chat_tokens)
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

    def _lengths(self, folder: Path) -> dict[int, int]:
        """The chats that are trained on, and their tokens; counts the others."""
        lengths: dict[int, int] = {}
        refusal: HerdError | None = None
        counts: Counter[str] = Counter()
        long = f"chats of more than context={self.config.context} tokens"
        parts: list[TrainingChat] = []
        for index, chat in enumerate(self.chats):
            shown = any(part["type"] != "text" for message in chat.messages for part in parts_of(message))
            if shown and not self.processor.reads_pictures:
                counts[f"chats with pictures, {SEES_NONE}"] += 1
                continue
            try:
                sample = self._render(chat)
                if len(sample.ids) > self.config.context and self.config.long_chats == "window":
                    windows = self._windows(chat)
                    counts[f"{long}, split into {len(windows)}"] += 1
                    parts += windows
                    continue
            except HerdError as error:
                refusal = refusal or error
                counts["chats that the chat template refuses"] += 1
                continue
            if len(sample.ids) > self.config.context:
                # Half of a picture's tokens would be of no picture.
                cuts = self.config.long_chats == "cut" and not sample.tiles
                if cuts and sample.learnt[: self.config.context].any():
                    counts[f"{long}, cut"] += 1
                    lengths[index] = self.config.context
                else:
                    counts[long] += 1
            elif not sample.learnt.any():
                counts["chats without an answer"] += 1
            else:
                lengths[index] = len(sample.ids)
        for chat in parts:
            self.chats.append(chat)
            lengths[len(self.chats) - 1] = len(self._render(chat).ids)
        self.left_out |= counts
        if not lengths:
            reasons = "; ".join(f"{count:,} {what}" for what, count in counts.items()) or "it has none to train on"
            raise HerdError(
                f"{folder}: no chat is left to train on ({reasons}{f'; {refusal}' if refusal else ''}): raise context, "
                "or give a data folder with other chats"
            )
        return lengths

    def _windows(self, chat: TrainingChat) -> list[TrainingChat]:
        """A chat that is too long as several, each of the system message and as many turns in a row as fit. A turn that
        does not fit by itself is left out."""
        system = [one for one in chat.messages if one["role"] == "system"]
        begins = [at for at, one in enumerate(chat.messages) if one["role"] == "user"]
        turns = [chat.messages[begin:end] for begin, end in pairwise([*begins, len(chat.messages)])]
        windows: list[TrainingChat] = []
        held: list[dict[str, Any]] = []
        for turn in turns:
            for start in (held, []):
                window = replace(chat, messages=[*system, *start, *turn])
                if len(self._render(window).ids) <= self.config.context:
                    if start is not held or not held:
                        windows.append(window)
                    else:
                        windows[-1] = window
                    held = [*start, *turn]
                    break
            else:
                held = []
        return windows

    def _render(self, chat: TrainingChat, rng: np.random.Generator | None = None) -> Sample:
        """A chat with its pictures; without a generator, with blank ones of the same layout."""
        # Which cut a picture gets is the chat's own, so that lengths are known beforehand.
        whole = stream(self.config.seed, "whole", chat.number).random() > self.config.tiled_share

        def opened(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] == "image":
                place = self.shelf.place[part["picture"]]
                if rng is None:
                    return {"type": "image", "image": self.shelf.blank(place, whole=whole)}
                return {"type": "image", "image": self.shelf.tiles(place, rng, whole=whole)}
            if part["type"] == "video":
                clip, count = self.clips.place[part["clip"]], self.config.frames_a_clip
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
            self._cut(self._render(self.chats[self.order[place]], stream(self.config.seed, "chat", place)))
            for place in self.steps[step]
        ]
        if self.replay is not None and step < self.replay.num_steps:
            samples += self.replay.samples(step, self.config.replay_weight)
        return pack(samples, patch_id=self.tokenizer.ids.patch)
