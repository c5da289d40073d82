"""Text files to documents that passed the filters, part by part, by any number of workers.

    parts of the files → segments of documents whose languages are known → segments of what the filters left

What makes a part and a segment depends on the files alone, so any number of workers writes the same. Each leaves a note
when it is done: what a killed worker or a killed run had in work is done again, and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from herd.config.cleaning import CleaningConfig
from herd.config.sources import TextSource
from herd.core.files import read_json, write_json
from herd.core.inputs import InputFile
from herd.core.workers import Workers
from herd.data.sources.documents import Documents, part_chars
from herd.data.sources.source import Notes
from herd.data.text.boilerplate import Boilerplate, find_boilerplate
from herd.data.text.contamination import EvaluationIndex, EvaluationSets
from herd.data.text.dedup import write_signed
from herd.data.text.pipeline import (
    SEGMENT_BYTES,
    Segment,
    evaluation_index,
    filter_identified,
    write_identified,
)
from herd.data.text.report import Report
from herd.data.text.spool import Spool

PART_BYTES = 2**23
"""A part of several files ends with the one that reaches this size; a larger file is a part by itself."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files of one source that are read together."""

    source: TextSource
    files: tuple[InputFile, ...]
    out: Path
    """What the names of its segments begin with."""

    @property
    def note(self) -> Path:
        return self.out.with_name(f"{self.out.name}.note")


@dataclass(frozen=True, kw_only=True)
class _Reading:
    config: CleaningConfig
    part_chars: int
    segment_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Filtering:
    config: CleaningConfig
    boilerplate: Boilerplate
    index: EvaluationIndex


def clean_files(
    sources: Sequence[tuple[TextSource, Sequence[InputFile]]],
    config: CleaningConfig,
    report: Report,
    notes: Mapping[str, Notes],
    *,
    evaluation: EvaluationSets,
    folder: Path,
    workers: Workers,
    part_bytes: int = PART_BYTES,
    segment_bytes: int = SEGMENT_BYTES,
) -> list[Path]:
    """Files, for `deduplicate_parts`, with the documents that the filters leave of all sources; duplicates are still
    among them. Counts in `report` and, by source, in `notes`.

    `folder` keeps what is done until the caller removes it: another call for the same goes on there.
    """
    files = [file for _, own in sources for file in own]
    parts = list(_parts(sources, folder, part_bytes))
    reading = _Reading(config=config, part_chars=part_chars(files), segment_bytes=segment_bytes)
    missing = (part for part in parts if not part.note.exists())
    for _ in workers.map(_read, reading, missing, name=_name):
        pass
    segments: list[Segment] = []
    for part in parts:
        note = read_json(part.note)
        for name, counts in note["segments"]:
            segments.append((folder / name, {(language, script): count for language, script, count in counts}))
        report.merge(Report.from_note(note["report"]))
        notes[part.source.name].merge(Notes.from_note(note["notes"]))
    filtering = _Filtering(
        config=config,
        boilerplate=find_boilerplate(segments, config),
        index=evaluation_index(evaluation, config, report),
    )
    paths = [path for path, _ in segments]
    to_filter = (path for path in paths if not _filtered_note(path).exists())
    for path, _ in workers.map(_filter, filtering, to_filter, name=lambda path: f"the documents of {path}"):
        path.unlink()
    for path in paths:
        report.merge(Report.from_note(read_json(_filtered_note(path))))
    return [_filtered(path) for path in paths]


def _parts(sources: Sequence[tuple[TextSource, Sequence[InputFile]]], folder: Path, part_bytes: int) -> Iterator[Part]:
    number = 0
    for source, files in sources:
        group: list[InputFile] = []
        for file in [*files, None]:
            full = sum(one.size for one in group) >= part_bytes or (file is not None and file.size >= part_bytes)
            if group and (file is None or full):
                yield Part(source=source, files=tuple(group), out=folder / f"{number:06}")
                group, number = [], number + 1
            if file is not None:
                group.append(file)
        if not files:  # a module
            yield Part(source=source, files=(), out=folder / f"{number:06}")
            number += 1


def _name(part: Part) -> str:
    return str(part.files[0].path) if part.files else part.source.path


def _read(reading: _Reading, part: Part) -> None:
    report, notes = Report(), Notes()
    documents = Documents(part.source, part.files, notes, part_chars=reading.part_chars)
    segments = write_identified(documents, part.out, reading.config, report, segment_bytes=reading.segment_bytes)
    written = [(path.name, [(*key, count) for key, count in counts.items()]) for path, counts in segments]
    write_json(part.note, {"segments": written, "report": vars(report), "notes": vars(notes)})


def _filter(filtering: _Filtering, path: Path) -> None:
    report = Report()
    kept = filter_identified(Spool([path]), filtering.boilerplate, filtering.index, filtering.config, report)
    write_signed(kept, _filtered(path), filtering.config)
    write_json(_filtered_note(path), vars(report))


def _filtered(path: Path) -> Path:
    return path.with_name(f"{path.name}-filtered")


def _filtered_note(path: Path) -> Path:
    return path.with_name(f"{path.name}-filtered.note")
