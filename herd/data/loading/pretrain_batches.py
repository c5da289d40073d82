"""Pre-training batches: pieces of documents, and pictures with their names in several languages.

Which pieces make which step is planned once, from the lengths; pixels are cut only when a step asks for them. Batch s
is a function of (folder, config, s): resuming needs no state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from herd.config import PretrainConfig
from herd.core.batch import Batch
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.loading.pack import Sample, pack, steps_of
from herd.data.loading.picture_shelf import SEES_NONE, PictureShelf
from herd.data.media.image import ImageProcessor, Tiles
from herd.data.tokens.chat import header, render_messages
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError


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
        texts = [row["text"] for row in tables.read(folder, "text", ["split", "text"]) if row["split"] == "train"]
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
