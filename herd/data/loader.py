"""The data folder as training batches. Batch s is a function of (folder, config, s): resuming needs no state.

Pre-training reads pieces of documents and pictures with their names in several languages; fine-tuning reads chats.
Which samples make which step is planned once, from the lengths; pixels are cut only when a step asks for them.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
from PIL import Image

from herd.config import PretrainConfig, SftConfig
from herd.core.batch import Batch
from herd.core.errors import HerdError
from herd.core.streams import stream
from herd.data import wordings
from herd.data.augment import view
from herd.data.chat import header, parts_of, render_messages
from herd.data.image import ImageProcessor, Tiles, read_picture
from herd.data.pack import Sample, pack, steps_of
from herd.data.tokenizer import Tokenizer

SEES_NONE = "as the model reads text alone"
"""Why pictures are left out."""


def read_rows(folder: Path, name: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of one of the data folder's tables."""
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise HerdError(f"{path} is missing: run `herd data build --out {folder}` again")
    rows: list[dict[str, Any]] = pq.read_table(path, columns=list(columns) if columns else None).to_pylist()
    pyarrow.default_memory_pool().release_unused()  # it would keep what no one reads again: 150 MB of the tiny data
    return rows


class PictureShelf:
    """The pictures that may be trained on, opened once, and the views that are taken of them."""

    def __init__(self, folder: Path, processor: ImageProcessor) -> None:
        self.processor = processor
        # Those with names first: a chat may show one that has a caption only.
        rows = [row for row in read_rows(folder, "pictures") if row["split"] == "train"]
        self.rows = sorted(rows, key=lambda row: row["names"] == "{}")
        self.names = [json.loads(row["names"]) for row in self.rows if row["names"] != "{}"]
        spelt, thing_of = np.unique([row["names"] for row in self.rows if row["names"] != "{}"], return_inverse=True)
        self.things: list[dict[str, str]] = [json.loads(names) for names in spelt]
        """Names that differ: several pictures may show one thing."""
        self.thing_of = thing_of
        """By picture with names: which of `things` it shows."""
        self.place = {row["id"]: index for index, row in enumerate(self.rows)}
        self._open: dict[int, Image.Image] = {}
        self._small: dict[int, Image.Image] = {}

    def picture(self, index: int) -> Image.Image:
        """The picture in its own size."""
        if index not in self._open:
            self._open[index] = read_picture(self.rows[index]["png"])
        return self._open[index]

    def is_large(self, index: int) -> bool:
        """Whether the model would see it in several tiles."""
        return max(self.picture(index).size) > self.processor.config.image_size

    def tiles(self, index: int, rng: np.random.Generator, *, whole: bool) -> Tiles:
        """A random view; `whole` gives the one stretched tile alone, else the cut that a user's picture gets."""
        side = self.processor.config.image_size
        if whole:
            return self.processor.tiles(view(self._reduced(index, 2 * side), (side, side), rng))
        picture = self.picture(index)
        return self.processor.tiles(view(picture, picture.size, rng))

    def _reduced(self, index: int, side: int) -> Image.Image:
        """The picture at most `side` wide and high: a view samples it without the moiré of skipped pixels."""
        if index not in self._small:
            picture = self.picture(index)
            size = (min(picture.width, side), min(picture.height, side))
            self._small[index] = picture.resize(size, Image.Resampling.BILINEAR)
        return self._small[index]

    def layout(self, index: int, *, whole: bool) -> list[str]:
        """The tokens that will stand for `tiles(index, …)`."""
        return self.processor.tokens(self.processor.tiles(self.blank(index, whole=whole)))

    def blank(self, index: int, *, whole: bool) -> Image.Image:
        """A blank picture of the same layout."""
        side = self.processor.config.image_size
        return Image.new("RGB", (side, side) if whole else self.picture(index).size)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A planned sample: ids are known, the picture's pixels are not yet cut."""

    ids: np.ndarray
    learnt: np.ndarray
    kind: str
    picture: int | None = None
    whole: bool = True


class PretrainBatches:
    """Documents in pieces of at most `context` tokens, and pictures followed by their names; for a model of text alone
    documents only.

    Raises HerdError where a share has nothing to be filled with.
    """

    unit = "tokens"

    def __init__(self, folder: Path, config: PretrainConfig, tokenizer: Tokenizer, processor: ImageProcessor) -> None:
        self.tokenizer = tokenizer
        self.shelf = PictureShelf(folder, processor)
        self.left_out: dict[str, int] = {}
        """What of the data folder is not trained on, and how much of it."""
        if config.picture_share and not processor.reads_pictures:
            what = f"pictures, {SEES_NONE}: picture_share={config.picture_share} counts as 0"
            self.left_out[what] = len(self.shelf.names)
            config = replace(config, picture_share=0.0)
        self.config = config
        self._cache: dict[str, list[int]] = {}
        pieces = self._texts(folder) + self._pictures(folder)
        order = stream(config.seed, "order").permutation(len(pieces))
        self.pieces = [pieces[index] for index in order]
        lengths = np.array([len(piece.ids) for piece in self.pieces])
        self.steps = steps_of(lengths, config.batch_tokens)
        self.num_steps = len(self.steps)

    def _texts(self, folder: Path) -> list[Piece]:
        """Pieces of the training documents, epoch after epoch, each epoch cut at other places."""
        config, ids = self.config, self.tokenizer.ids
        texts = [row["text"] for row in read_rows(folder, "text", ["split", "text"]) if row["split"] == "train"]
        documents = [
            np.array([ids.bos, *tokens, ids.end_of_text], dtype=np.int32)
            for tokens in self.tokenizer.encode_batch(texts)
        ]
        wanted = int(config.num_tokens * (1 - config.picture_share))
        if wanted and not documents:
            raise HerdError(f"{folder} has no text to train on: give a data folder with text, or a share of 0")
        pieces: list[Piece] = []
        epoch = total = 0
        while total < wanted:
            rng = stream(config.seed, "texts", epoch)
            for index in rng.permutation(len(documents)):
                document = documents[index]
                begin = 0
                # The first cut is random from the second epoch on, so that pieces begin elsewhere.
                end = config.context if epoch == 0 else int(rng.integers(config.context // 4, config.context + 1))
                while begin < len(document) - 1 and total < wanted:
                    ids = document[begin:end]
                    pieces.append(Piece(ids=ids, learnt=np.ones(len(ids), dtype=bool), kind="text"))
                    total += len(pieces[-1].ids)
                    begin, end = end, end + config.context
                if total >= wanted:
                    break
            epoch += 1
        long = [piece for piece in pieces if len(piece.ids) > 1]
        if len(long) < len(pieces):
            self.left_out["ends of documents of a single token"] = len(pieces) - len(long)
        return long

    def _pictures(self, folder: Path) -> list[Piece]:
        """Each picture again and again, with its names in a few languages of the many."""
        config = self.config
        wanted = int(config.num_tokens * config.picture_share)
        if wanted and not self.shelf.names:
            raise HerdError(f"{folder} has no picture with a name to train on: set picture_share=0")
        if wanted and (nameless := len(self.shelf.rows) - len(self.shelf.names)):
            self.left_out["pictures without a name"] = nameless
        pieces: list[Piece] = []
        epoch = total = 0
        while total < wanted:
            rng = stream(config.seed, "pictures", epoch)
            for index in rng.permutation(len(self.shelf.names)):
                names = self.shelf.names[index]
                whole = not self.shelf.is_large(index) or rng.random() > config.tiled_share
                asked = rng.random() < config.asked_share
                count = config.names_asked if asked else config.names_a_picture
                chosen = {(lang := sorted(names)[i]): names[lang] for i in rng.permutation(len(names))[:count]}
                shown = self.shelf.layout(index, whole=whole)
                if not asked:
                    ids, learnt = self._listed(chosen, shown)
                elif self.tokenizer.template is None:
                    ids, learnt = self._asked(chosen, shown, rng)
                else:
                    ids, learnt = self._asked_by_template(chosen, index, whole, rng)
                pieces.append(
                    Piece(
                        ids=np.array(ids, dtype=np.int32),
                        learnt=np.array(learnt),
                        kind="picture",
                        picture=index,
                        whole=whole,
                    )
                )
                total += len(ids)
                if total >= wanted:
                    break
            epoch += 1
        return pieces

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
            question = wordings.NAME[language][rng.integers(len(wordings.NAME[language]))]
            picture = [special[token] for token in shown] if turn == 0 else []
            ids += [*header(self.tokenizer, "user"), *picture, *self._encoded(question), special["<|eot|>"]]
            ids += header(self.tokenizer, "assistant")
            learnt += [False] * (len(ids) - len(learnt))
            ids += [*self._encoded(name), special["<|eot|>"]]
            learnt += [True] * (len(ids) - len(learnt))
        return ids, learnt

    def _asked_by_template(
        self, names: dict[str, str], index: int, whole: bool, rng: np.random.Generator
    ) -> tuple[list[int], list[bool]]:
        """The same in the model's own format."""
        messages: list[dict[str, Any]] = []
        for language, name in names.items():
            question = wordings.NAME[language][rng.integers(len(wordings.NAME[language]))]
            shown = [] if messages else [{"type": "image", "image": self.shelf.blank(index, whole=whole)}]
            messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": name})
        rendered = render_messages(self.tokenizer, self.shelf.processor, messages, add_generation_prompt=False)
        return rendered.ids, rendered.learnt

    def samples(self, step: int, text_weight: float = 1.0) -> list[Sample]:
        """The documents of step `step`; `text_weight` is what each learnt token of text weighs."""
        samples = []
        for place in self.steps[step]:
            piece = self.pieces[place]
            tiles = []
            if piece.picture is not None:
                rng = stream(self.config.seed, "view", place)
                tiles = [self.shelf.tiles(piece.picture, rng, whole=piece.whole)]
            weight = text_weight if piece.picture is None else self.config.picture_weight
            samples.append(Sample(ids=piece.ids, learnt=piece.learnt, kind=piece.kind, tiles=tiles, weight=weight))
        return samples

    def batch(self, step: int) -> Batch:
        """The batch of step `step`."""
        return pack(self.samples(step), patch_id=self.tokenizer.ids.patch)


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
            row["id"]: (row["seconds"], row["frames"]) for row in read_rows(folder, "clips") if row["split"] == "train"
        }
        self.chats = [
            (row["kind"], json.loads(row["messages"])) for row in read_rows(folder, "chats") if row["split"] == "train"
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
                side = self.processor.config.image_size
                size = (side, side) if whole else self.shelf.picture(place).size
                if rng is None:
                    return {"type": "image", "image": Image.new("RGB", size)}
                return {"type": "image", "image": self.shelf.tiles(place, rng, whole=whole)}
            if part["type"] == "video":
                seconds, frames = self.clips[part["clip"]]
                side = self.processor.config.image_size
                # Two frames tell a clip from a still at a quarter of the tokens.
                chosen = [0, len(frames) // 2]
                pictures = [
                    Image.new("RGB", (side, side)) if rng is None else read_picture(frames[i]).resize((side, side))
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
