"""A trained prompt guard: texts of any length to a score between 0 and 1.

A text is read in up to three ways (`views`), each is cut into overlapping windows, equal windows are scored once, and
the score is the highest of them. Nothing is truncated. The folder has `model.safetensors`, `config.json` (shape,
threshold, the scripts and frequent words of the training texts) and `herd.json`; where there is a reader, its weights
are in `reader.safetensors`, its pieces in `tokenizer.json`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from herd.core.files import read_json, read_text, write_atomic, write_json
from herd.errors import HerdError
from herd.guard.prompt_guard.letters import script_of, visible
from herd.guard.prompt_guard.network import Network, PromptGuardConfig, suspicious
from herd.guard.prompt_guard.reader import Reader, ReaderConfig
from herd.guard.prompt_guard.views import views
from herd.guard.prompt_guard.windows import tensors, windows
from herd.guard.prompt_guard.words import Lexicon, split

KIND = "herd-prompt-guard"
DAMAGED = "the guard's score is not a number: its weights are damaged"
BATCH_WORDS = 4096
"""Words that are scored at a time."""
Words = tuple[str, ...]
"""A window, or a run of one."""
Place = dict[Words, int]
"""Windows of one passage in several readings, with the number of the reading."""
SEEN_LETTERS = 2000
"""A script of which training had fewer letters counts as not seen."""


@dataclass(frozen=True, kw_only=True)
class PromptVerdict:
    """What a guard finds in a text."""

    score: float
    """From 0, benign, to 1, an injection or jailbreak: the highest of all windows of all readings."""
    flagged: bool
    """Whether the score reaches the guard's threshold."""
    passage: str
    """The words of the window with that score."""
    reading: int
    """0: the text as it is; 1 and 2: a plain or decoded reading of it."""
    num_windows: int
    note: str = ""
    """What limits the verdict, such as a script that training has not seen."""


class PromptGuard:
    """The guard of a folder that `herd guard train-prompt` wrote."""

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        made = read_json(folder / "config.json")
        if not isinstance(made, dict) or made.get("kind") != KIND:
            raise HerdError(f"{folder} is no prompt guard: give a folder that `herd guard train-prompt` wrote")
        if set(made.get("shape", ())) != {one.name for one in fields(PromptGuardConfig)}:
            raise HerdError(
                f"{folder} was trained by a version whose prompt guards were made otherwise: train it again"
            )
        network = Network(PromptGuardConfig(**made["shape"]))
        try:
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, RuntimeError, KeyError) as error:
            raise HerdError(f"{folder}/model.safetensors does not fit its config.json: {error}") from None
        reader = None
        if made.get("reader"):
            try:
                reader = Reader(ReaderConfig(**made["reader"]), read_text(folder / "tokenizer.json"))
                reader.load_state_dict(load_file(folder / "reader.safetensors"))
            except (OSError, RuntimeError, KeyError, TypeError) as error:
                raise HerdError(f"{folder}/reader.safetensors does not fit its config.json: {error}") from None
        self._init(network, Lexicon(made["lexicon"]), made["scripts"], made["threshold"], reader)

    def _init(
        self,
        network: Network,
        lexicon: Lexicon,
        scripts: dict[str, int],
        threshold: float,
        reader: Reader | None,
    ) -> None:
        self.network, self.lexicon, self.scripts, self.threshold = network.eval(), lexicon, scripts, threshold
        self.config, self.reader = network.config, reader.eval() if reader else None

    @classmethod
    def of(
        cls,
        network: Network,
        lexicon: Lexicon,
        *,
        scripts: dict[str, int],
        threshold: float = 0.5,
        reader: Reader | None = None,
    ) -> "PromptGuard":
        """A guard that was just trained."""
        guard = cls.__new__(cls)
        guard._init(network, lexicon, scripts, threshold, reader)
        return guard

    def save(self, folder: Path) -> None:
        """Write the folder's files."""
        save_file(self.network.state_dict(), folder / "model.safetensors", {"format": "pt"})
        made = {"kind": KIND, "shape": asdict(self.config), "threshold": self.threshold, "scripts": self.scripts}
        if self.reader is not None:
            made["reader"] = asdict(self.reader.config)
            save_file(self.reader.state_dict(), folder / "reader.safetensors", {"format": "pt"})
            write_atomic(folder / "tokenizer.json", self.reader.tokenizer)
        write_json(folder / "config.json", made | {"lexicon": self.lexicon.counts})

    def score(self, text: str) -> float:
        """The highest score of all windows of all readings of `text`. Raises HerdError for a text without words."""
        return self.check(text).score

    def scores(self, texts: Sequence[str]) -> list[float]:
        """The score of each text, scored together; 1 for one without words, which nothing vouches for."""
        places = [self._places(text) for text in texts]
        found = iter(self._place_scores([place for of in places for place in of]))
        return [max((next(found)[1] for _ in of), default=1.0) for of in places]

    def check(self, text: str) -> PromptVerdict:
        """The verdict on a text. Raises HerdError for a text without words: it is neither benign nor an attack."""
        places = self._places(text)
        if not places or not visible(text).strip():
            raise HerdError("the text is empty: there is nothing to check")
        found = self._place_scores(places)
        best = max(range(len(found)), key=lambda at: found[at][1])
        words, score = found[best]
        return PromptVerdict(
            score=score,
            flagged=score >= self.threshold,
            passage=" ".join(words),
            reading=places[best][words],
            num_windows=sum(map(len, places)),
            note=self._note(text),
        )

    def _places(self, text: str) -> list[Place]:
        """The windows of all readings, equal ones once. Readings of as many words have theirs at the same places."""
        found: dict[tuple[int, int], Place] = {}
        seen: set[Words] = set()
        for reading, view in enumerate(views(text, self.lexicon)):
            words = split(view)
            for number, one in enumerate(windows(words, self.config.window, self.config.stride)):
                if one not in seen:
                    seen.add(one)
                    found.setdefault((len(words), number), {})[one] = reading
        return list(found.values())

    def window_scores(self, cut: Sequence[Sequence[str]]) -> list[float]:
        """P(attack) of each window of words."""
        return [score for _, score in self._place_scores([{tuple(one): 0} for one in cut])]

    @torch.no_grad()
    def _place_scores(self, places: Sequence[Place]) -> list[tuple[Words, float]]:
        """Of each place the window that the n-grams find most suspicious, and P(attack) of it with the reader.

        One reading of a passage is enough for the reader, as its time is half of that of a text.
        """
        every = list(dict.fromkeys(one for place in places for one in place))
        margins, runs = self._suspicious(every)
        chosen = [max(place, key=margins.__getitem__) for place in places]
        if self.reader is not None:
            read = list(dict.fromkeys(chosen))
            for one, margin in zip(read, self.reader.margins([runs[one] for one in read]), strict=True):
                margins[one] += margin
        if any(map(math.isnan, margins.values())):
            raise HerdError(DAMAGED)
        scores = torch.tensor([margins[one] for one in chosen], dtype=torch.float64).sigmoid().tolist()
        return list(zip(chosen, scores, strict=True))

    def _suspicious(self, every: Sequence[Words]) -> tuple[dict[Words, float], dict[Words, Words]]:
        """How much of an attack the n-grams find in each window, and its most suspicious run."""
        margins: dict[Words, float] = {}
        runs: dict[Words, Words] = {}
        length = self.reader.config.run if self.reader else 1
        order = sorted(every, key=len)
        while order:
            longest = len(order[-1])
            room = order[-max(1, BATCH_WORDS // max(longest, 1)) :]
            # A short window beside a long one would be mostly padding.
            number = sum(2 * len(one) >= longest for one in room)
            batch, order = order[-number:], order[:-number]
            words = self.network.evidence(*tensors(batch, self.config.buckets))
            begins = suspicious(*words, length=length, count=1)
            if not all(begins):
                raise HerdError(DAMAGED)
            margins |= zip(batch, self.network.margin(*words).tolist(), strict=True)
            runs |= {one: one[begin : begin + length] for one, (begin,) in zip(batch, begins, strict=True)}
        return margins, runs

    @property
    def num_parameters(self) -> int:
        """Of the network and the reader."""
        return sum(one.numel() for part in (self.network, self.reader) if part for one in part.parameters())

    def _note(self, text: str) -> str:
        counts = scripts_of([text])
        unseen = {name: count for name, count in counts.items() if self.scripts.get(name, 0) < SEEN_LETTERS}
        if 2 * sum(unseen.values()) > sum(counts.values()):
            return f"written in {max(unseen, key=unseen.__getitem__).title()}, which the guard has not been trained on"
        return ""


def scripts_of(texts: Iterable[str]) -> dict[str, int]:
    """Letters by script, such as LATIN or CYRILLIC."""
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(text)
    counts: Counter[str] = Counter()
    for letter, count in letters.items():
        if script := script_of(letter):
            counts[script] += count
    return dict(counts)


def facts_of(verdict: PromptVerdict) -> dict[str, Any]:
    """A verdict as JSON has it."""
    return asdict(verdict)
