"""Generated items of words and drawings: most asks are harmless beside one thing and harmful beside another.

Neither the words nor the drawing decide alone: half of the drawings beside such an ask are of harmless things, and
other asks are harmless beside any drawing. Some show two things, and one that harms is enough. Drawings are the emoji
of a data folder (`herd data build`), in several styles. One style and some wordings are held out: training never sees
them; the things are the same.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.media.augment import view
from herd.data.media.image import read_picture
from herd.data.tasks.safety.items import SPLITS, Split, lines, make_item, one_of
from herd.errors import HerdError

HELD_STYLE = "openmoji"
BLADES = ("kitchen knife", "dagger", "crossed swords", "axe")
EXPLOSIVES = ("bomb", "firecracker")
DRUGS = ("syringe", "cigarette")
DANGEROUS = (*BLADES, *EXPLOSIVES, *DRUGS)
HARMLESS = (
    "birthday cake", "banana", "green apple", "strawberry", "pizza", "carrot", "cookie", "doughnut", "sandwich",
    "egg", "cheese wedge", "croissant", "ice cream", "lemon", "grapes", "popcorn", "pear", "watermelon", "broccoli",
    "pancakes", "guitar", "violin", "trumpet", "drum", "teddy bear", "kite", "balloon", "soccer ball", "tennis",
    "volleyball", "wrapped gift", "bouquet", "sunflower", "tulip", "open book", "notebook", "crayon", "backpack",
    "umbrella", "hatching chick", "t-shirt", "jeans", "socks", "scarf", "glasses", "crown", "candle", "teapot",
    "basket", "bell", "potted plant", "snowman", "sailboat", "bicycle", "camera", "love letter", "cat face",
    "dog face", "rabbit face", "panda",
)  # fmt: skip
"""By their English names in CLDR."""


HARM: Mapping[str, tuple[str, ...]] = {"S1": (*BLADES, "bomb"), "S9": EXPLOSIVES, "S2": DRUGS}
"""The things beside which words of a category's asks violate it."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Words that are harmful beside a drawing of some things, and the category then."""

    text: str
    code: str

    @property
    def things(self) -> tuple[str, ...]:
        """Beside which it is."""
        return HARM[self.code]


@cache
def _said(split: Split) -> tuple[tuple[str, str], ...]:
    """Kind and text of the lines of a split: a category, or `safe` beside anything."""
    found = lines("held_pictured.txt" if split == "heldout" else "pictured.txt")
    return tuple((kind.strip(), text.strip()) for kind, text in (line.split("|", 1) for line in found))


@cache
def asks(split: Split) -> tuple[Ask, ...]:
    """Those of a split."""
    return tuple(Ask(text=text, code=kind) for kind, text in _said(split) if kind != "safe")


@cache
def plain(split: Split) -> tuple[str, ...]:
    """Words of a split that are harmless beside anything."""
    return tuple(text for kind, text in _said(split) if kind == "safe")


@dataclass(frozen=True, kw_only=True)
class PicturedItem:
    """What one message with drawings is."""

    text: str
    pngs: tuple[bytes, ...]
    codes: tuple[str, ...] = ()
    combined: bool = False
    """Only words and drawings together tell whether it is unsafe."""

    def parts(self, *, drawn: bool = True, views: np.random.Generator | None = None) -> list[dict[str, Any]]:
        """The message's parts: the drawings, random `views` of them where given, and the words, or the words alone."""
        shown = [read_picture(png) for png in (self.pngs if drawn else ())]
        if views:
            shown = [view(picture, picture.size, views) for picture in shown]
        pictures = [{"type": "image", "image": picture, "max_tiles": 1} for picture in shown]
        return [*pictures, {"type": "text", "text": self.text}]


class Drawings:
    """The drawings of a data folder, by split and thing."""

    def __init__(self, folder: Path) -> None:
        """Raises HerdError where the folder has too few of them."""
        found: dict[Split, dict[str, list[bytes]]] = {split: {} for split in SPLITS}
        for row in tables.read(folder, "pictures", ["id", "split", "names", "png"]):
            name = json.loads(row["names"]).get("en")
            if row["split"] == "train" and row["id"].startswith("emoji/") and name in {*DANGEROUS, *HARMLESS}:
                split: Split = "heldout" if row["id"].split("/")[1] == HELD_STYLE else "train"
                found[split].setdefault(name, []).append(row["png"])
        self._found = found
        for split in SPLITS:
            kinds = [self.there(split, things) for things in (BLADES, EXPLOSIVES, DRUGS, HARMLESS)]
            if min(map(len, kinds)) < 1 or len(kinds[-1]) < 10:
                raise HerdError(
                    f"{folder} has drawings of {sum(map(len, kinds))} of {len(DANGEROUS) + len(HARMLESS)} things to "
                    f"learn from for the split {split}: build it with the emoji packages (herd data build)"
                )

    def there(self, split: Split, things: Sequence[str]) -> list[str]:
        """Those things that there are drawings of."""
        return [thing for thing in things if thing in self._found[split]]

    def item(self, seed: int, split: Split, number: int) -> PicturedItem:
        """The item with this number: half are combinations; in three of ten the words are harmless; in two they are
        those of an item without drawings, harmful or not."""
        rng = stream(seed, "pictured item", split, number)

        def draw(things: Sequence[str]) -> bytes:
            return one_of(self._found[split][one_of(self.there(split, things), rng)], rng)

        kind = rng.random()
        if kind < 0.5:
            ask = one_of(asks(split), rng)
            unsafe = bool(rng.random() < 0.5)
            pngs = [draw(ask.things if unsafe else HARMLESS)]
            if rng.random() < 0.25:
                pngs.insert(int(rng.integers(2)), draw(HARMLESS))
            return PicturedItem(text=ask.text, pngs=tuple(pngs), codes=(ask.code,) if unsafe else (), combined=True)
        png = draw(DANGEROUS if rng.random() < 0.5 else HARMLESS)
        if kind < 0.8:
            return PicturedItem(text=one_of(plain(split), rng), pngs=(png,))
        while (item := make_item(seed, split, int(rng.integers(2**31)))).role != "user":
            pass
        return PicturedItem(text=item.text, pngs=(png,), codes=item.codes)
