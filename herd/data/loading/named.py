"""Pictures and clips with their names as pieces of pre-training: ids that are learnt or given, pixels cut later.

Early fusion (Llama 4; Chameleon, arXiv 2405.09818): what is shown is a run of tokens in a document like any other, the
names behind it are text. Image tokens and times are given, never predicted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from herd.config import PretrainConfig
from herd.core.streams import stream
from herd.data.media.image import ImageProcessor, Tiles
from herd.data.tokens.chat import header, render_messages
from herd.data.tokens.tokenizer import Tokenizer

COUNTED = 256
"""Things by which the tokens of one are estimated."""
Questions = Mapping[str, Sequence[str]]
"""How a name is asked for, by language."""


@dataclass(frozen=True, kw_only=True)
class NamedPiece:
    """A planned picture or clip with its names."""

    ids: np.ndarray
    learnt: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PicturePiece(NamedPiece):
    """A picture, whole in one tile or cut as a user's is."""

    picture: int
    whole: bool


@dataclass(frozen=True, kw_only=True)
class ClipPiece(NamedPiece):
    """A clip, a few frames of it."""

    clip: int


P = TypeVar("P", bound=NamedPiece)


class NamedStream(Generic[P]):
    """The endless stream of `many` pictures or clips, each pass in an order of its own; `make` makes the piece of one.
    A place in the stream is counted in tokens."""

    def __init__(self, kind: str, many: int, seed: int, make: Callable[[int, np.random.Generator], P]) -> None:
        self._kind, self._many, self._seed, self._make = kind, many, seed, make

    def pieces(self, begin: int, end: int, window: int) -> list[P]:
        """What the window shows that is to fill the places from `begin` to `end`."""
        pieces: list[P] = []
        total, wanted = 0, end - begin
        epoch, place = divmod(round(begin / self._mean_tokens), self._many) if begin and wanted else (0, 0)
        while total < wanted:
            rng = stream(self._seed, f"{self._kind}s", epoch)
            order = rng.permutation(self._many)[place:]
            if window:
                rng = stream(self._seed, f"{self._kind}s", epoch, window)
            for index in order:
                pieces.append(self._make(int(index), rng))
                total += len(pieces[-1].ids)
                if total >= wanted:
                    break
            epoch, place = epoch + 1, 0
        return pieces

    @cached_property
    def _mean_tokens(self) -> float:
        """Tokens of a piece, about: where a window begins in the stream."""
        rng = stream(self._seed, f"{self._kind} tokens")
        indices = rng.permutation(self._many)[:COUNTED]
        return float(np.mean([len(self._make(int(index), rng).ids) for index in indices]))


class NameWriter:
    """Writes what is shown and its names as ids, and which of them are learnt."""

    def __init__(self, config: PretrainConfig, tokenizer: Tokenizer, processor: ImageProcessor) -> None:
        self.config, self.tokenizer, self.processor = config, tokenizer, processor
        self._cache: dict[str, list[int]] = {}

    def write(
        self, part: dict[str, Any], names: Mapping[str, str], questions: Questions, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """`ids` and `learnt` of a part of a message (herd.data.tokens.chat) followed by its names in a few languages of
        the many; in those of `questions` they may be asked for, as in chat."""
        config = self.config
        asked = rng.random() < config.asked_share and any(language in questions for language in names)
        if asked:
            names = {language: name for language, name in names.items() if language in questions}
        count = config.names_asked if asked else config.names_a_picture
        chosen = {(lang := sorted(names)[i]): names[lang] for i in rng.permutation(len(names))[:count]}
        if not asked:
            ids, learnt = self._listed(part, chosen)
        else:
            wordings = [questions[lang][int(rng.integers(len(questions[lang])))] for lang in chosen]
            turns = list(zip(wordings, chosen.values(), strict=True))
            ids, learnt = (self._asked if self.tokenizer.template is None else self._by_template)(part, turns)
        return {"ids": np.array(ids, dtype=np.int32), "learnt": np.array(learnt)}

    def _encoded(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text)
        return self._cache[text]

    def _shown(self, part: dict[str, Any]) -> list[int]:
        """A picture's image tokens, or those of a clip's frames, each behind its time."""
        if part["type"] == "image":
            return self._image_tokens(part["image"])
        frames = ([*self._encoded(f"{seconds:.1f}s"), *self._image_tokens(frame)] for seconds, frame in part["frames"])
        return [token for frame in frames for token in frame]

    def _image_tokens(self, tiles: Tiles) -> list[int]:
        return [self.tokenizer.special[token] for token in self.processor.tokens(tiles)]

    def _listed(self, part: dict[str, Any], names: Mapping[str, str]) -> tuple[list[int], list[bool]]:
        """What is shown and lines of languages and names. A name begins its line, as it begins an answer: after a space
        its tokens would be others."""
        own = self.tokenizer.ids
        given = [own.bos, *self._shown(part)]
        lines = [token for language, name in names.items() for token in self._encoded(f"{language}\n{name}\n")]
        ids = [*given, *lines, own.end_of_text]
        return ids, [False] * len(given) + [True] * (len(ids) - len(given))

    def _asked(self, part: dict[str, Any], turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[bool]]:
        """A chat in Llama 4's format: the name is asked for in one language after the other."""
        special = self.tokenizer.special
        ids, learnt = [special["<|begin_of_text|>"]], [False]
        for turn, (question, name) in enumerate(turns):
            shown = [] if turn else self._shown(part)
            ids += [*header(self.tokenizer, "user"), *shown, *self._encoded(question), special["<|eot|>"]]
            ids += header(self.tokenizer, "assistant")
            learnt += [False] * (len(ids) - len(learnt))
            ids += [*self._encoded(name), special["<|eot|>"]]
            learnt += [True] * (len(ids) - len(learnt))
        return ids, learnt

    def _by_template(self, part: dict[str, Any], turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[bool]]:
        """The same in the model's own format."""
        messages: list[dict[str, Any]] = []
        for question, name in turns:
            shown = [] if messages else [part]
            messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": name})
        rendered = render_messages(self.tokenizer, self.processor, messages, add_generation_prompt=False)
        return rendered.ids, rendered.learnt
