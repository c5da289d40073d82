"""Fine-tuning batches: chats, and pieces of training documents beside them.

Which chats make which step is planned once, from their lengths; pixels are cut only when a step asks for them. Batch s
is a function of (folder, config, s): resuming needs no state.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from herd.config import PretrainConfig, SftConfig
from herd.core.batch import Batch
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.loading.pack import Sample, pack, steps_of
from herd.data.loading.picture_shelf import SEES_NONE, PictureShelf
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.media.image import ImageProcessor, read_picture
from herd.data.tokens.chat import parts_of, render_messages
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
        self.clips = {
            row["id"]: (row["seconds"], row["frames"])
            for row in tables.read(folder, "clips")
            if row["split"] == "train"
        }
        self.chats = [
            (row["kind"], json.loads(row["messages"]))
            for row in tables.read(folder, "chats")
            if row["split"] == "train"
        ]
        self.left_out: dict[str, int] = {}
        """What of the data folder is not trained on, and how much of it."""
        lengths = self._lengths(folder)
        fitting = list(lengths)
        order: list[int] = []
        total = epoch = 0
        wanted = int(config.num_tokens * (1 - config.replay_share))
        while total < wanted:
            for index in stream(config.seed, "chats", epoch).permutation(fitting):
                order.append(int(index))
                total += lengths[index]
                if total >= wanted:
                    break
            epoch += 1
        self.order = order
        chat_tokens = int(config.batch_tokens * (1 - config.replay_share))
        self.steps = steps_of(np.array([lengths[index] for index in order]), chat_tokens)
        self.num_steps = len(self.steps)
        replay = PretrainConfig(
            seed=config.seed + 1,  # another order than pre-training's
            num_tokens=max(1, config.num_tokens - wanted),
            batch_tokens=max(1, config.batch_tokens - chat_tokens),
            context=config.context,
            picture_share=0.0,
        )
        self.replay = PretrainBatches(folder, replay, tokenizer, processor) if config.replay_share else None
        if self.replay is not None:
            self.left_out |= self.replay.left_out

    def _lengths(self, folder: Path) -> dict[int, int]:
        """The chats that are trained on, and their tokens; counts the others."""
        lengths: dict[int, int] = {}
        refusal: HerdError | None = None
        counts: Counter[str] = Counter()
        for index, (_, messages) in enumerate(self.chats):
            shown = any(part["type"] != "text" for message in messages for part in parts_of(message))
            if shown and not self.processor.reads_pictures:
                counts[f"chats with pictures, {SEES_NONE}"] += 1
                continue
            try:
                sample = self._render(messages, None, index)
            except HerdError as error:
                refusal = refusal or error
                counts["chats that the chat template refuses"] += 1
                continue
            if len(sample.ids) > self.config.context:
                counts[f"chats of more than context={self.config.context} tokens"] += 1
            elif not sample.learnt.any():
                counts["chats without an answer"] += 1
            else:
                lengths[index] = len(sample.ids)
        self.left_out |= counts
        if not lengths:
            told = "; ".join(f"{count:,} {what}" for what, count in counts.items()) or "it has none to train on"
            raise HerdError(
                f"{folder}: no chat is left to train on ({told}{f'; {refusal}' if refusal else ''}): raise context, or "
                "give a data folder with other chats"
            )
        return lengths

    def _render(self, messages: list[dict[str, Any]], rng: np.random.Generator | None, index: int) -> Sample:
        """A chat with its pictures; without a generator, with blank ones of the same layout."""
        # Which cut a picture gets is the chat's own, so that lengths are known beforehand.
        whole = stream(self.config.seed, "whole", index).random() > self.config.tiled_share

        def opened(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] == "image":
                place = self.shelf.place[part["picture"]]
                if rng is None:
                    return {"type": "image", "image": self.shelf.blank(place, whole=whole)}
                return {"type": "image", "image": self.shelf.tiles(place, rng, whole=whole)}
            if part["type"] == "video":
                seconds, frames = self.clips[part["clip"]]
                side = self.processor.config.image_size
                # Two frames tell a clip from a still at a quarter of the tokens.
                chosen = [0, len(frames) // 2]
                pictures = [
                    self.processor.blank(side, side) if rng is None else read_picture(frames[i]).resize((side, side))
                    for i in chosen
                ]
                return {"type": "video", "frames": list(zip([seconds[i] for i in chosen], pictures, strict=True))}
            return part

        shown = [
            {**m, "content": [opened(part) for part in m["content"]]} if isinstance(m.get("content"), list) else m
            for m in messages
        ]
        rendered = render_messages(self.tokenizer, self.processor, shown, add_generation_prompt=False)
        return Sample(
            ids=np.array(rendered.ids, dtype=np.int32),
            learnt=np.array(rendered.learnt),
            kind="picture" if rendered.tiles else "chat",
            tiles=rendered.tiles,
        )

    def batch(self, step: int) -> Batch:
        """The batch of step `step`."""
        samples = [
            self._render(self.chats[self.order[place]][1], stream(self.config.seed, "chat", place), self.order[place])
            for place in self.steps[step]
        ]
        if self.replay is not None and step < self.replay.num_steps:
            samples += self.replay.samples(step, self.config.replay_weight)
        return pack(samples, patch_id=self.tokenizer.ids.patch)
