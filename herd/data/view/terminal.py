"""Rows of a data folder in the terminal: tokens in colours, pictures in half blocks."""

import re

from PIL import Image
from rich.console import Console
from rich.style import Style
from rich.text import Text

from herd.data.view.items import Shown

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
LEARNT, ALTERNATE, GIVEN, SPECIAL = "green", "bold green", "default", "cyan"
"""Tokens that the loss counts, every second of them, tokens that it does not count, and special ones."""
LEGEND = Text.assemble(
    ("learnt, ", LEARNT), ("every second token bold", ALTERNATE), ("; given; ", GIVEN), ("special", SPECIAL)
)
COLUMNS = 32
"""Width of a picture in characters."""


def show(console: Console, shown: Shown, *, characters: int) -> None:
    """Print a row; of its text as many characters as are asked for."""
    console.print(Text(f"\n{shown.table}  {visible(shown.id)}", style="bold"))
    for name, value in shown.facts.items():
        console.print(Text(f"  {name:10} {visible(value)}", style="dim"))
    if shown.num_tokens:
        console.print(Text(f"  {'tokens':10} {shown.num_tokens:,}", style="dim"))
    if shown.note:
        console.print(Text(f"  {visible(shown.note)}", style="yellow"))
    if shown.spans:
        console.print(tokens(shown, characters))
    for picture in shown.pictures:
        if console.is_terminal and console.color_system:
            console.print(half_blocks(picture), end="")
        console.print(Text(f"  {picture.width} x {picture.height} pixels", style="dim"))


def tokens(shown: Shown, characters: int) -> Text:
    """The tokens, those that are learnt in colour."""
    text, left = Text(), characters
    for place, span in enumerate(shown.spans):
        style = SPECIAL if span.special else GIVEN
        if span.learnt:
            style = f"{LEARNT} underline" if span.special else (LEARNT, ALTERNATE)[place % 2]
        text.append(visible(span.text)[:left], style)
        left -= len(span.text)
        if left <= 0 and place < len(shown.spans) - 1:
            text.append(f" … ({len(shown.spans) - place - 1:,} more tokens)", "dim")
            break
    return text


def visible(text: str) -> str:
    """`text` with control characters as pictures of themselves: a document must not command the terminal."""
    return CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if ord(found[0]) < 0x20 else "\u2421", text)


def half_blocks(picture: Image.Image) -> Text:
    """The picture, two pixels in a character."""
    height = max(2, round(COLUMNS * picture.height / picture.width / 2) * 2)
    small = picture.resize((COLUMNS, height), Image.Resampling.BILINEAR).convert("RGB")

    def colour(x: int, y: int) -> str:
        red, green, blue = small.getpixel((x, y))  # type: ignore[misc]
        return f"#{red:02x}{green:02x}{blue:02x}"

    text = Text()
    for y in range(0, height, 2):
        for x in range(COLUMNS):
            text.append("▀", Style(color=colour(x, y), bgcolor=colour(x, y + 1)))
        text.append("\n")
    return text
