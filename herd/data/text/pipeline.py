"""The filters in their order: from documents as their sources give them to those that are kept, and a report.

Each document passes alone: encoding, form, language, lines, length, quality, contamination, masks. Boilerplate needs
all documents of a source, and duplicates all there are; for these the texts wait in temporary files.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

from herd.config.cleaning import CleaningConfig
from herd.data.text.boilerplate import Boilerplate, LineCounter, find_boilerplate
from herd.data.text.contamination import EvaluationIndex, EvaluationSets
from herd.data.text.dedup import deduplicate
from herd.data.text.documents import AUTO, Document, num_bytes
from herd.data.text.languages import MIN_IDENTIFIED, detect, is_language
from herd.data.text.lines import LINE_FILTERS, PHRASES, REASONS, without_citations
from herd.data.text.normalise import is_mojibake, normalise_lines, without_surrogates
from herd.data.text.passage import Passage, symbol_share
from herd.data.text.pii import mask
from herd.data.text.quality import DOCUMENT_FILTERS
from herd.data.text.report import Report
from herd.data.text.spool import Spool, SpoolWriter
from herd.data.text.thresholds import thresholds

Segment = tuple[Path, Mapping[tuple[str, str], int]]
"""A file of documents whose languages are known, and how many it has of each source and language."""
SEGMENT_BYTES = 2**23
"""A segment ends with the document that reaches this size, in bytes of text and DOCUMENT_BYTES for each document."""
DOCUMENT_BYTES = 200


def clean(
    documents: Iterable[Document],
    config: CleaningConfig,
    *,
    evaluation: EvaluationSets | None = None,
    folder: Path | None = None,
) -> tuple[Iterator[Document], Report]:
    """The documents that are kept, in the order of their hashes, and the report, complete when they have been read.

    The language `auto` is identified. Temporary files are written to `folder`, else to the system's place for them.
    """
    report = Report()
    index = evaluation_index(evaluation or {}, config, report)
    filtered = filter_documents(documents, config, report, evaluation=index, folder=folder)
    return deduplicate(filtered, config, report, folder=folder), report


def filter_documents(
    documents: Iterable[Document],
    config: CleaningConfig,
    report: Report,
    *,
    evaluation: EvaluationIndex | None = None,
    folder: Path | None = None,
) -> Iterator[Document]:
    """What is left of the documents after the filters that do not compare them with each other.

    A document that is cut gives several, of the same page. To find boilerplate, the documents are copied to disk.
    """
    index = evaluation or EvaluationIndex({}, 0)
    if not config.boilerplate_documents:
        yield from filter_identified(identify(documents, config, report), Boilerplate({}), index, config, report)
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as place:
        segments = write_identified(documents, Path(place) / "read", config, report)
        boilerplate = find_boilerplate(segments, config)
        yield from filter_identified(Spool([path for path, _ in segments]), boilerplate, index, config, report)


def evaluation_index(evaluation: EvaluationSets, config: CleaningConfig, report: Report) -> EvaluationIndex:
    """What documents may not share with evaluation sets; counts the items, looked for and too short."""
    index = EvaluationIndex(evaluation, config.contamination_ngram)
    report.checked_items.update(index.checked)
    report.unchecked_items.update(index.unchecked)
    return index


def write_identified(
    documents: Iterable[Document],
    path: Path,
    config: CleaningConfig,
    report: Report,
    *,
    segment_bytes: int = SEGMENT_BYTES,
) -> list[Segment]:
    """Identify documents and write them to segments whose names begin with `path`, with the counts of their lines."""
    identified = identify(documents, config, report)
    segments: list[Segment] = []
    while (first := next(identified, None)) is not None:
        counter, size = LineCounter(), 0
        with SpoolWriter(path.with_name(f"{path.name}-{len(segments):05}")) as spool:
            for document in chain([first], identified):
                spool.append(document)
                if config.boilerplate_documents:
                    counter.add(document)
                size += document.num_bytes + DOCUMENT_BYTES
                if size >= segment_bytes:
                    break
            counter.save(spool.path)
        segments.append((spool.path, dict(counter.documents)))
    return segments


def filter_identified(
    documents: Iterable[Document],
    boilerplate: Boilerplate,
    index: EvaluationIndex,
    config: CleaningConfig,
    report: Report,
) -> Iterator[Document]:
    """What is left of documents whose languages are known: of their lines, and of these documents."""
    checks = list(_document_checks(config))
    for document in documents:
        for text in _cut(_filter_lines(document, boilerplate, config, report), config.max_bytes):
            part = document if text == document.text else replace(document, text=text)
            report.count("lines", part)
            passage = Passage(text, document.language)
            reason = next((name for name, is_fault in checks if is_fault(passage)), "")
            if reason:
                report.drop(f"document: {reason}", text, document)
                continue
            report.count("quality", part)
            if found := index.find(text):
                report.drop("document: contaminated", text, document)
                report.contaminated[found[0]] += 1
                report.contaminated_items[": ".join(found)] += 1
                continue
            report.count("contamination", part)
            masked, counts = mask(text, config.mask)
            report.masked.update(counts)
            yield part if masked is text else replace(part, text=masked)


def identify(documents: Iterable[Document], config: CleaningConfig, report: Report) -> Iterator[Document]:
    """The documents in one form and with their languages, without those whose language is unknown or not wanted."""
    for document in documents:
        text = without_surrogates(document.text)
        if text is not document.text:
            document = replace(document, text=text)
        report.count("read", document)
        if config.mojibake and is_mojibake(text):
            report.drop("document: mojibake", text, document)
            continue
        if config.normalise and (normal := normalise_lines(text)) != text:
            document = replace(document, text=normal)
        if document.language == AUTO:
            language, probability = detect(document.text)
            if config.language and probability < MIN_IDENTIFIED:
                report.drop("document: unknown language", text, document)
                continue
            document = replace(document, language=language)
        if config.languages and document.language not in config.languages:
            report.drop("document: language not wanted", text, document)
            continue
        report.count("language", document)
        yield document


def _filter_lines(document: Document, boilerplate: Boilerplate, config: CleaningConfig, report: Report) -> str:
    """The text without the lines that are dropped; blank ones are kept."""
    filters = [
        (REASONS.get(name, name), fault)
        for name, fault in LINE_FILTERS.items()
        if getattr(config, name) and (name not in PHRASES or fault(document.text, document.language))
    ]
    has_citations = config.c4_citations and "[" in document.text
    if not (filters or has_citations or config.boilerplate_documents):
        return document.text
    common = boilerplate.of(document)
    kept: list[str] = []
    for line in document.text.split("\n"):
        if not line.strip():
            kept.append(line)
            continue
        cut = without_citations(line) if has_citations else line
        reason = next((name for name, fault in filters if fault(cut, document.language)), "")
        if not reason and line in common:
            reason = "boilerplate"
        if reason:
            report.drop(f"line: {reason}", line, document)
        else:
            kept.append(cut)
    return "\n".join(kept)


def _cut(text: str, max_bytes: int) -> Iterator[str]:
    """The lines in parts of at most `max_bytes` (a single longer line stays whole), without blank ends."""
    if not max_bytes or num_bytes(text) < max_bytes:
        yield text.strip("\n")
        return
    part: list[str] = []
    size = 0
    for line in text.split("\n"):
        length = num_bytes(line) + 1
        if part and size + length > max_bytes:
            yield "\n".join(part).strip("\n")
            part, size = [], 0
        part.append(line)
        size += length
    yield "\n".join(part).strip("\n")


def _document_checks(config: CleaningConfig) -> Iterator[tuple[str, Callable[[Passage], bool]]]:
    """The filters that are on, with the names that the report calls them by."""
    yield "empty", lambda passage: not passage.text.strip()
    if config.min_bytes:
        yield "short", lambda passage: num_bytes(passage.text) < config.min_bytes
    if config.max_symbol_share < 1:
        yield "symbols", lambda passage: symbol_share(passage.text) > config.max_symbol_share
    if config.language:
        yield "other language", lambda passage: not is_language(passage.text, passage.language)
    for name, fault in DOCUMENT_FILTERS.items():
        if getattr(config, name):
            yield name, lambda passage, fault=fault: fault(passage, thresholds(passage.language))  # type: ignore[misc]
