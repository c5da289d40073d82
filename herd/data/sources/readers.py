"""Which reader reads which file, by its suffix; and the rows of many files, one after the other.

To add a kind of file: a module with a `Reader` and a line in READERS.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from herd.core.inputs import InputFile, find_files, is_module
from herd.data.sources.arrow import read_arrow, read_parquet
from herd.data.sources.csv_rows import read_csv
from herd.data.sources.html import read_html
from herd.data.sources.json_rows import read_json, read_jsonl
from herd.data.sources.media_names import captions_among
from herd.data.sources.module import read_module
from herd.data.sources.pdf import read_pdf
from herd.data.sources.plain import read_plain
from herd.data.sources.source import Notes, Reader, ReadOptions, Row, Unreadable
from herd.data.sources.stream import DAMAGED, OPENERS
from herd.data.sources.warc import read_warc
from herd.errors import HerdError

DOCUMENTS: dict[str, Reader] = {
    ".txt": read_plain,
    ".text": read_plain,
    ".md": read_plain,
    ".markdown": read_plain,
    ".rst": read_plain,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".pdf": read_pdf,
    ".warc": read_warc,
    ".wet": read_warc,
}
"""Files that are documents."""
ROWS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
"""Files of rows, whose columns say what they are."""
READERS = DOCUMENTS | ROWS
ARCHIVES = {".zip", ".tar", ".tgz", ".7z", ".rar"}
FOLDER_FACTS = {"dataset_info.json", "dataset_dict.json", "state.json", "herd.json"}
"""Facts about a folder that are no data."""


def kind_of(path: Path) -> str:
    """The suffix that names the reader of a file, that of a compressed one before it; empty if there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else ""


def readable(files: Sequence[InputFile], notes: Notes) -> list[InputFile]:
    """Those of the files that there is a reader for; counts the others."""
    found = []
    captions = captions_among(file.path for file in files)
    for file in files:
        if file.path.name in FOLDER_FACTS or file.path in captions:
            continue
        if _is_other_split(file.path):
            notes.skip("files of a `datasets` folder that are of other splits than train", file.path)
            continue
        if kind_of(file.path):
            found.append(file)
        elif ARCHIVES & {suffix.lower() for suffix in file.path.suffixes}:
            notes.skip("archives: unpack them first", file.path)
        else:
            notes.skip(f"files of a kind that is not read ({file.path.suffix or 'no suffix'})", file.path)
    return found


def _is_other_split(path: Path) -> bool:
    """Whether a file is of another split than `train` of a folder that Hugging Face's `datasets` saved."""
    split = path.parent
    return split.name != "train" and (split.parent / "dataset_dict.json").exists() and (split.parent / "train").is_dir()


def read_rows(path: str, files: Sequence[InputFile], options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """The rows of `files`, which `find_files(path)` found, or of the module that `path` names.

    Raises HerdError for a file that changed since it was found.
    """
    if is_module(path):
        yield from read_module(path, notes)
    for file in files:
        file.check_unchanged()
        yield from read_file(file.path, options, notes)
        file.check_unchanged()


def read_file(path: Path, options: ReadOptions, notes: Notes) -> Iterator[Row]:
    """The rows of one file; what ends it early is counted."""
    try:
        yield from READERS[kind_of(path)](path, options, notes)
    except Unreadable as error:
        notes.skip(str(error), path, error.detail)
    except LookupError as error:
        if "encoding" not in str(error):
            raise
        raise HerdError(f"{path}: encoding = {options.encoding!r}: {error}") from None
    except UnicodeError as error:
        notes.skip("files that are not in the encoding that they seem to be in", path, str(error)[:80])
    except DAMAGED as error:
        notes.skip("files that are damaged, or unreadable", path, str(error)[:80] or type(error).__name__)


def files_of(path: str, notes: Notes) -> list[InputFile]:
    """The files of a source. Raises HerdError where none can be read."""
    if is_module(path):
        return []
    found = readable(find_files(path), notes)
    if not found:
        what = "; ".join(notes.skipped) or "it has nothing but facts about a data set"
        raise HerdError(
            f"{path}: nothing in it is read ({what}); what is read: {', '.join(READERS)}, also .gz and .zst"
        )
    return found
