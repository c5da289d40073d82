"""Commands that show a data folder: `herd data show`, `herd data stats`."""

import sys
from pathlib import Path
from typing import Any

from herd.commands.command import load_object
from herd.errors import HerdError


def data_show(
    data: Path,
    /,
    *,
    table: str = "",
    split: str = "",
    language: str = "",
    source: str = "",
    kind: str = "",
    id: str = "",
    num: int = 3,
    skip: int = 0,
    model: Path | None = None,
    characters: int = 2000,
    page: Path | None = None,
) -> None:
    """Show rows of a data folder as a model reads them: tokens with the loss mask in colour, pictures in tiles.

    Args:
        data: A data folder.
        table: text, chats, preferences, prompts, pictures or clips; all that the folder has if not given.
        split: Show rows of this split, such as train or heldout.
        language: Show rows in this language.
        source: Show rows of this source.
        kind: Show chats of this kind.
        id: Show the row with this id.
        num: Rows of each table.
        skip: Rows of each table to skip before them.
        model: Model whose tokenizer, chat format and image processor are used; the folder's own tokenizer if not given.
        characters: Text of a row at most, in the terminal.
        page: Write an HTML page to this file instead.
    """
    items = "herd.data.view.items"
    if num < 1 or skip < 0:
        raise HerdError(f"num={num} must be 1 or more and skip={skip} 0 or more")
    tables = [table] if table else load_object(f"{items}:tables_of")(data)
    if not tables:
        raise HerdError(f"{data} has no table: give a data folder, such as runs/tiny/data")
    wanted = load_object(f"{items}:Wanted")(split=split, language=language, source=source, kind=kind, id=id)
    reader = load_object(f"{items}:Reader")(**_reader(data, model))
    shown = (
        row for name in tables for row in load_object(f"{items}:find")(data, name, wanted, reader, skip=skip, num=num)
    )
    if page is not None:
        written = load_object("herd.data.view.page:write_page")(page, f"{data.name}: rows of the data", list(shown))
        print(f"wrote {written}")
        return
    console, count = load_object("rich.console:Console")(), 0
    console.print(load_object("herd.data.view.terminal:LEGEND"))
    for count, row in enumerate(shown, 1):  # noqa: B007
        load_object("herd.data.view.terminal:show")(console, row, characters=characters)
    if not count:
        raise HerdError(f"{data} has no row like this in {', '.join(tables)}: see `herd data stats {data}`")


def _reader(data: Path, model: Path | None) -> dict[str, Any]:
    processor = load_object("herd.data.media.image:ImageProcessor")
    if model is None:
        return {
            "tokenizer": load_object("herd.data.tokens.tokenizer:Tokenizer").load(data / "tokenizer"),
            "processor": processor(None),
        }
    source = load_object("herd.model.formats.source:find_source")(model)
    config = source.weights().config
    return {"tokenizer": source.tokenizer(config.special), "processor": processor(config.vision)}


def data_stats(data: Path, /, *, json: bool = False) -> None:
    """Count what a data folder holds, by language, source, kind and split.

    Args:
        data: A data folder.
        json: Print JSON instead of tables.
    """
    found = load_object("herd.data.view.stats:stats")(data)
    if json:
        print(
            load_object("json:dumps")({table.title: table.as_json() for table in found}, indent=2, ensure_ascii=False)
        )
        return
    console = load_object("rich.console:Console")(width=None if sys.stdout.isatty() else 160)
    for figures in found:
        grid = load_object("rich.table:Table")(title=figures.title, title_justify="left", box=None, pad_edge=False)
        for place, column in enumerate(figures.columns):
            number = any(isinstance(row[place], int) for row in figures.rows)
            grid.add_column(column, justify="right" if number else "left", no_wrap=not number, overflow="fold")
        for row in figures.rows:
            grid.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in row))
        console.print(grid)
