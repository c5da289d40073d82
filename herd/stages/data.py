"""The user's files and the embedded packages to a data folder: text, books, pictures, clips, chats, preferences,
prompts, the tokenizer and tokens, and a card that says what they are. Tables that there is nothing for are absent.

The work is done in steps; each leaves its file and, after it, a small note with its figures. A run that was killed goes
on after the last step whose note was made under the same config and from the same files and packages.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from herd.config import LANGUAGES, DataConfig
from herd.core.files import work_folder, write_atomic, write_json
from herd.core.lineage import Stage, hash_of
from herd.core.progress import progress_bar
from herd.core.workers import Workers
from herd.data.loading import tables
from herd.data.media.image import picture_size
from herd.data.packages.novel import SOURCE as NOVEL
from herd.data.packages.text import CLEANING
from herd.data.sources.clean import clean_files
from herd.data.sources.fetch import Fetched, Pack, cached, fetch
from herd.data.text.contamination import EvaluationIndex
from herd.data.text.dedup import deduplicate_parts, write_signed
from herd.data.text.documents import digest
from herd.data.text.pipeline import evaluation_index
from herd.data.text.report import Report
from herd.data.text.splits import HeldOutPages, held_out_pages
from herd.data.view.card import write_card
from herd.errors import HerdError
from herd.rl import demonstrations
from herd.stages.data_evaluation import chat_item, evaluation_sets
from herd.stages.data_media import shown
from herd.stages.data_packages import (
    PACKAGES,
    Facts,
    package_chats,
    package_clips,
    package_documents,
    package_facts,
    package_pictures,
    packages_left_out,
    write_books,
)
from herd.stages.data_sources import CHAT, OwnSources
from herd.stages.data_summary import describe_cleaning, describe_heldout, describe_source, losses
from herd.stages.data_tokens import make_tokenizer, write_tokens

CLEANING_FOLDER = ".cleaning"
"""What text waits in until its table is written."""
OWN_CHATS, OWN_PICTURES, OWN_CLIPS = "own_chats", "own_pictures", "own_clips"
"""What the user's chats and their pictures wait in, until the tables of all are written."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """What a data folder is made of, and the folder in work."""

    cfg: DataConfig
    work: Path
    fetched: Fetched | None
    """The packages, where they go in."""
    own: OwnSources
    novel: Pack | None
    """The package of the novel that long evaluations ask about, where it is in the cache."""
    key: str
    """Of the config, the packages and the user's files: what was made under another one is not used."""

    @property
    def workers(self) -> Workers:
        return Workers(number=self.cfg.workers, ray=self.cfg.on == "ray")


def build_data(cfg: DataConfig, out: Path) -> Path:
    """Write the data folder `out`. Raises HerdError when there is no text and no chat, or the packages lack theirs."""
    if not (cfg.sources or cfg.demonstrations or cfg.reads_packages):
        raise HerdError("there is nothing to make data of: give files of yours with --from, or sources in [data]")
    own = OwnSources(cfg=cfg)
    fetched = fetch() if cfg.reads_packages else None
    parents = cfg.inputs()
    stage = Stage("data", out, config=cfg, parents=parents)
    novel = fetched.packs.get(NOVEL) if fetched else cached(NOVEL)
    packs = [*(fetched.packs.values() if fetched else ()), *([novel] if novel else ())]
    key = build_key(cfg, packs, {role: hash_of(path) for role, path in parents.items()})
    build = Build(cfg=cfg, work=work_folder(out), fetched=fetched, own=own, novel=novel, key=key)
    steps = Steps(build)
    write_json(build.work / "sources.json", own.settings())
    facts: Facts = {}
    with progress_bar("data", len(STEPS)) as bar:
        for name, step in STEPS.items():
            bar.describe(f"data: {name}")
            facts |= steps.run(name, step)
            stage.save_time()
            bar.advance()
    steps.forget()
    sources = own.facts()
    for source in sources:
        print(describe_source(source))
    if cfg.text:
        print(describe_cleaning(facts["cleaning"]))
        for line in losses(facts["cleaning"], [source.name for source in cfg.text]):
            print(line)
        if line := describe_heldout(facts["documents"], share=cfg.heldout, least_bytes=cfg.heldout_bytes):
            print(line)
    left_out = packages_left_out(fetched) if fetched else []
    if not build.novel and not fetched:
        left_out.append(f"{NOVEL}: not in the cache, so documents were not compared with it: run `herd data fetch`")
    packages = package_facts(fetched) if fetched else []
    card = {**facts, "sources": [*sources, *packages], "unread": own.unread(), "left_out": left_out}
    write_card(build.work, card)
    return stage.finish(card=card)


def build_key(cfg: DataConfig, packs: Iterable[Pack], hashes: dict[str, str]) -> str:
    """A hash of all that the data folder depends on; `hashes` are those of the user's files."""
    packages = sorted({(pack.source.name, pack.sha256) for pack in packs})
    config = {name: value for name, value in asdict(cfg).items() if name not in {"workers", "on"}}
    return hashlib.sha256(json.dumps([config, packages, hashes]).encode()).hexdigest()


Step = Callable[[Build], Facts]


class Steps:
    """Runs steps in the `.partial` folder, each once for a config, a set of packages and the user's files."""

    def __init__(self, build: Build) -> None:
        self.build = build

    def run(self, name: str, step: Step) -> Facts:
        note = self._note(name)
        if note.exists():
            kept = json.loads(note.read_text())
            if kept["key"] == self.build.key:
                self.build.own.restore(kept["own"])
                return dict(kept["facts"])
        facts = step(self.build)
        self.build.own.check_unchanged()
        write_json(note, {"key": self.build.key, "facts": facts, "own": self.build.own.state()})
        shutil.rmtree(self.build.work / CLEANING_FOLDER, ignore_errors=True)
        return facts

    def forget(self) -> None:
        """Remove the notes of the steps, and what only they needed."""
        for name in STEPS:
            self._note(name).unlink(missing_ok=True)
        for name in (OWN_CHATS, OWN_PICTURES, OWN_CLIPS):
            (self.build.work / f"{name}.parquet").unlink(missing_ok=True)

    def _note(self, name: str) -> Path:
        return self.build.work / f".{name}.json"


def _text(build: Build) -> Facts:
    """text.parquet: documents in the order of their hashes."""
    cfg, report = build.cfg, Report()
    if not (cfg.text or build.fetched):
        return {}
    folder = _cleaning_folder(build)
    parts: list[Path] = []
    config = cfg.cleaning if cfg.text else CLEANING
    sets = evaluation_sets(build.work, build.novel)
    if build.fetched:
        counted = Report() if cfg.text else report  # the same sets are counted once
        index = evaluation_index(sets, CLEANING, counted)
        write_signed(package_documents(cfg, build.fetched, report, index), folder / PACKAGES, config)
        parts.append(folder / PACKAGES)
    if cfg.text:
        own = build.own
        parts += clean_files(
            [(source, own.files[source.name]) for source in cfg.text],
            cfg.cleaning,
            report,
            own.notes,
            evaluation=sets,
            folder=folder,
            workers=build.workers,
        )
    rows = build.work / "text.unsplit.parquet"
    with tables.Writer(rows, _UNSPLIT) as table:
        for document in deduplicate_parts(parts, config, report):
            table.add(
                {
                    "id": document.id,
                    "split": "",
                    "language": document.language,
                    "source": document.source,
                    "text": document.text,
                    "repeat": document.repeats,
                    "page": digest(document.page),
                    "bytes": document.num_bytes,
                }
            )
    _refuse_nothing(cfg, report, table.num_rows)
    held = held_out_pages(_Pages(rows), share=cfg.heldout, least_bytes=cfg.heldout_bytes)
    counts = _write_split(build, rows, held)
    rows.unlink()
    return {"documents": counts, "dropped": dict(sorted(report.dropped.items())), "cleaning": report.as_json()}


_UNSPLIT = pyarrow.schema([*tables.TEXT, ("page", pyarrow.string()), ("bytes", pyarrow.int64())])


@dataclass(frozen=True)
class _Pages:
    """Language, page and bytes of every document of a table."""

    path: Path

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        columns = ["language", "page", "bytes"]
        return (tuple(row.values()) for row in tables.rows(self.path, columns))


def _cleaning_folder(build: Build) -> Path:
    """Where the parts of the text are until their step is done; those of other files or another config are removed."""
    folder, key = build.work / CLEANING_FOLDER, build.key
    if not (folder / "key").exists() or (folder / "key").read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_atomic(folder / "key", key)
    return folder


def _refuse_nothing(cfg: DataConfig, report: Report, kept: int) -> None:
    if kept:
        return
    read = report.left.get("read", Counter())["documents"]
    lost = losses(report.as_json(), [source.name for source in cfg.text], share=0)
    raise HerdError(
        f"no text is left of {read:,} documents: give more text, or switch filters off"
        + "".join(f"; {line}" for line in lost[:4])
    )


def _write_split(build: Build, rows: Path, held: HeldOutPages) -> Facts:
    """Write text.parquet, its rows with their splits; gives documents and bytes by language and split."""
    languages = LANGUAGES if build.fetched else ()
    counts = {name: {split: {"documents": 0, "bytes": 0} for split in ("train", "heldout")} for name in languages}
    names = {source.name for source in build.cfg.text}
    with (
        parquet.ParquetFile(rows, pre_buffer=False) as file,
        tables.Writer(build.work / "text.parquet", tables.TEXT) as out,
    ):
        for number in range(file.num_row_groups):
            group = file.read_row_group(number)
            places = zip(group["language"].to_pylist(), group["page"].to_pylist(), strict=True)
            own = ["heldout" if place in held else "train" for place in places]
            group = group.select(tables.TEXT.names)
            out.add_table(group.set_column(1, "split", pyarrow.array(own, pyarrow.string())))
            for row, split in zip(group.select(["language", "source", "text"]).to_pylist(), own, strict=True):
                of_language = counts.setdefault(
                    row["language"], {split: {"documents": 0, "bytes": 0} for split in ("train", "heldout")}
                )
                of_language[split]["documents"] += 1
                of_language[split]["bytes"] += len(row["text"].encode())
                if row["source"] in names:
                    build.own.counts[row["source"]][split] += 1
    return counts


def _books(build: Build) -> Facts:
    if not build.fetched:
        return {}
    index = EvaluationIndex(evaluation_sets(build.work, build.novel), CLEANING.contamination_ngram)
    return write_books(build.fetched, build.work, index)


def _own_chats(build: Build) -> Facts:
    """The user's chats, pictures and clips, in tables of their own until those of all are written."""
    cfg, work = build.cfg, build.work
    if not (cfg.chats or cfg.images or cfg.videos):
        return {}
    with (
        tables.Writer(work / f"{OWN_PICTURES}.parquet", tables.PICTURES) as pictures,
        tables.Writer(work / f"{OWN_CLIPS}.parquet", tables.CLIPS) as clips,
        tables.Writer(work / f"{OWN_CHATS}.parquet", tables.CHATS) as chats,
    ):
        for row in build.own.chats(pictures):
            chats.add(row)
        for one in shown(cfg, build.own):
            (pictures if "png" in one.row else clips).add(one.row)
            chats.add(one.chat)
    for source in (*cfg.images, *cfg.videos):
        if not build.own.counts[source.name]:
            _refuse_no_rows(build, "picture" if source in cfg.images else "video", [source.name])
    return {}


def _own(build: Build, name: str) -> Iterator[dict[str, Any]]:
    path = build.work / f"{name}.parquet"
    return tables.rows(path) if path.exists() else iter(())


def _pictures(build: Build) -> Facts:
    rows, facts = package_pictures(build.cfg, build.fetched) if build.fetched else ([], {})
    counts: Counter[str] = Counter()
    with tables.Writer(build.work / "pictures.parquet", tables.PICTURES) as table:
        for row in rows:
            table.add(_with_size(row))
        for row in _own(build, OWN_PICTURES):
            counts[f"{row['source']} {row['split']}"] += 1
            table.add(_with_size(row))
    if not table.num_rows:
        (build.work / "pictures.parquet").unlink()
    return facts | ({"pictures": {**facts.get("pictures", {}), **counts}} if counts else {})


def _with_size(row: dict[str, Any]) -> dict[str, Any]:
    width, height = picture_size(row["png"])
    return {**row, "width": width, "height": height}


def _clips(build: Build) -> Facts:
    rows, facts = package_clips(build.cfg, build.fetched, build.work) if build.fetched else ([], {})
    counts: Counter[str] = Counter()
    with tables.Writer(build.work / "clips.parquet", tables.CLIPS) as table:
        for row in rows:
            table.add(row)
        for row in _own(build, OWN_CLIPS):
            counts[row["split"]] += 1
            table.add(row)
    if not table.num_rows:
        (build.work / "clips.parquet").unlink()
    return facts | ({"own_clips": dict(sorted(counts.items()))} if counts else {})


def _chats(build: Build) -> Facts:
    if not (tables.has(build.work, OWN_CHATS) or build.cfg.demonstrations or build.fetched):
        return {}
    left_out: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    # The user's held-out chats are no set for the user's others: they may share a system message.
    sets = evaluation_sets(build.work, build.novel, chats=False)
    with tables.Writer(build.work / "chats.parquet", tables.CHATS) as table:
        for row in package_chats(build.cfg, build.fetched, build.work, left_out) if build.fetched else ():
            counts[f"{row['kind']} {row['split']}"] += 1
            table.add(row)
            if row["split"] != "train":
                name, item = chat_item(row)
                sets.setdefault(name, []).append(item)
        for source in build.cfg.demonstrations:
            for row in demonstrations.rows(source, build.cfg.seed):
                counts[f"{row['kind']} {row['split']}"] += 1
                table.add(row)
        index = EvaluationIndex(sets, build.cfg.cleaning.contamination_ngram)
        for row in _own(build, OWN_CHATS):
            is_trained = row["kind"] == CHAT and row["split"] == "train"
            if is_trained and (found := index.find(chat_item(row)[1])):
                build.own.drop_contaminated(row, found)
                continue
            counts[f"{row['source']} {row['split']}"] += 1
            table.add(row)
    if build.cfg.chats and not any(build.own.counts[source.name] for source in build.cfg.chats):
        _refuse_no_rows(build, "chat", [source.name for source in build.cfg.chats])
    return {"chats": dict(sorted(counts.items())), "chats_left_out": dict(sorted(left_out.items()))}


def _refuse_no_rows(build: Build, what: str, names: list[str]) -> None:
    reasons = [line for name in names for line in build.own.notes[name].lines()]
    raise HerdError(f"no {what} is left of {', '.join(names)}: {'; '.join(reasons[:4]) or 'the files are empty'}")


def _preferences(build: Build) -> Facts:
    if not build.cfg.preferences:
        return {}
    tables.write(build.work / "preferences.parquet", build.own.preferences(), tables.PREFERENCES)
    return {"preferences": _rows_of(build, "preference", [source.name for source in build.cfg.preferences])}


def _prompts(build: Build) -> Facts:
    if not build.cfg.prompts:
        return {}
    tables.write(build.work / "prompts.parquet", build.own.prompts(), tables.PROMPTS)
    return {"prompts": _rows_of(build, "prompt", [source.name for source in build.cfg.prompts])}


def _rows_of(build: Build, what: str, names: list[str]) -> dict[str, int]:
    if not any(build.own.counts[name] for name in names):
        _refuse_no_rows(build, what, names)
    counts = {(name, split): count for name in names for split, count in build.own.counts[name].items()}
    return {f"{name} {split}": count for (name, split), count in sorted(counts.items())}


def _tokenizer(build: Build) -> Facts:
    return make_tokenizer(build.cfg, build.work)


def _tokens(build: Build) -> Facts:
    return write_tokens(build.cfg, build.work, build.workers)


STEPS: dict[str, Step] = {
    "preferences": _preferences,
    "prompts": _prompts,
    "own chats": _own_chats,
    "pictures": _pictures,
    "clips": _clips,
    "chats": _chats,
    "text": _text,  # after what is held out of the tables before, which it is compared with
    "books": _books,
    "tokenizer": _tokenizer,
    "tokens": _tokens,
}
