"""`herd bench code`: the code scanner on the labelled code of CyberSecEval's instruct set, beside semgrep and bandit.

Each row of the set has code of a public repository, one line of which Meta's detector labelled with a weakness. The
code is a cut of 10 to 20 lines and mostly does not parse by itself, so it is scanned as a fragment. A hit is a
finding on the labelled line; `same weakness` asks for the same number of the CWE, or a near one (NEAR), too. The
labels are those of another scanner, not of people: missing one is disagreement, and so is a finding elsewhere. False
alarms are measured on Python's standard library, whose code was reviewed, and where a finding is mostly, not always,
false. The semgrep here runs our own rules: others cannot be fetched offline.
"""

import json
import random
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.bench.table import Row, machine, show
from herd.config.cyber import dataset_files
from herd.core.statistics import wilson
from herd.errors import HerdError
from herd.evaluate.cyber_items import read_items
from herd.guard.code.languages import language_named
from herd.guard.code.rules import Finding, find
from herd.guard.code.text import CodeText
from herd.guard.code.tools import Piece, installed_tools

NEAR = (
    frozenset({"CWE-119", "CWE-120", "CWE-121", "CWE-242", "CWE-787", "CWE-193"}),
    frozenset({"CWE-327", "CWE-328", "CWE-1240", "CWE-323", "CWE-347", "CWE-353", "CWE-759", "CWE-916", "CWE-326"}),
    frozenset({"CWE-330", "CWE-335", "CWE-338"}),
    frozenset({"CWE-94", "CWE-95", "CWE-78", "CWE-88", "CWE-829"}),
    frozenset({"CWE-312", "CWE-321", "CWE-798", "CWE-259"}),
    frozenset({"CWE-377", "CWE-807"}),
    frozenset({"CWE-200", "CWE-209"}),
    frozenset({"CWE-185", "CWE-1333"}),
    frozenset({"CWE-345", "CWE-346"}),
    frozenset({"CWE-680", "CWE-190", "CWE-131"}),
    frozenset({"CWE-665", "CWE-676"}),
    frozenset({"CWE-770", "CWE-908", "CWE-119"}),
)
"""Numbers that name one weakness more or less closely."""
LIBRARY_FILES = 200


@dataclass(frozen=True)
class Labelled:
    """A row of the set."""

    code: str
    language: str
    cwe: str
    line: int
    """From 1."""


def same_weakness(one: str, other: str) -> bool:
    return one == other or any(one in near and other in near for near in NEAR)


def read_labelled(checkout: Path) -> list[Labelled]:
    """The rows whose labelled line is in their code, in one place."""
    path = dataset_files(checkout, ["instruct"])[0]["instruct"]
    rows = []
    for item in read_items("instruct", path):
        row, language = item.row, language_named(item.row["language"])
        code, text = row.get("origin_code") or "", row.get("line_text") or ""
        if not language or not text.strip() or code.count(text) != 1:
            continue
        line = code[: code.index(text)].count("\n") + 1
        rows.append(Labelled(code, language, row["cwe_identifier"], line))
    if not rows:
        raise HerdError(f"{path} has no row with the code that its label is about")
    return rows


def library() -> list[str]:
    """Files of Python's standard library without its tests, drawn by a fixed seed."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
    paths = [path for path in sorted(folder.rglob("*.py")) if not skipped & set(path.relative_to(folder).parts)]
    paths = random.Random(0).sample(paths, min(LIBRARY_FILES, len(paths)))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    return [text for text in texts if 0 < len(text) < 100_000]


Found = Mapping[int, Sequence[Finding]]


def scan_with(name: str, pieces: Mapping[int, Piece]) -> tuple[Found, set[int]]:
    """Findings by piece, and the pieces that were scanned."""
    if name == "rules":
        return {number: find(CodeText(piece.code, piece.language)) for number, piece in pieces.items()}, set(pieces)
    tool = next(tool for tool in installed_tools()[0] if tool.name == name)
    own = {number: piece for number, piece in pieces.items() if piece.language in tool.languages}
    report = tool.scan(own)
    return report.found, set(own) - set(report.failed)


def agreement(rows: Sequence[Labelled], found: Found, scanned: set[int], *, strict: bool) -> dict[str, Any]:
    """How often the labelled line is found, of all rows and of those that were scanned; findings elsewhere."""
    hits, same, anywhere, elsewhere = 0, 0, 0, 0
    by_language: dict[str, Counter[str]] = {}
    for number, row in enumerate(rows):
        findings = [one for one in found.get(number, ()) if strict or one.level == "insecure"]
        at_line = [one for one in findings if one.line == row.line]
        hit = bool(at_line)
        hits += hit
        same += any(same_weakness(one.cwe, row.cwe) for one in at_line)
        anywhere += bool(findings)
        elsewhere += len({one.line for one in findings} - {row.line})
        by_language.setdefault(row.language, Counter()).update(rows=1, hits=hit)
    low, high = wilson(hits, len(rows))
    return {
        "rows": len(rows),
        "scanned": len(scanned & set(range(len(rows)))),
        "hits": hits,
        "share": hits / len(rows),
        "low": low,
        "high": high,
        "same_weakness": same,
        "any_finding": anywhere,
        "lines_elsewhere": elsewhere,
        "lines": sum(row.code.count("\n") + 1 for row in rows),
        "by_language": {language: dict(count) for language, count in sorted(by_language.items())},
    }


def alarms(texts: Sequence[str], found: Found, scanned: set[int], first: int, *, strict: bool) -> dict[str, Any]:
    """Files and lines of the library with a finding."""
    lines = files = 0
    for number in range(len(texts)):
        findings = {one.line for one in found.get(first + number, ()) if strict or one.level == "insecure"}
        lines += len(findings)
        files += bool(findings)
    all_lines = sum(text.count("\n") for text in texts)
    return {
        "files": len(texts),
        "scanned": sum(first + number in scanned for number in range(len(texts))),
        "files_found": files,
        "lines_found": lines,
        "lines": all_lines,
    }


def measure(checkout: Path) -> dict[str, Any]:
    """All scanners that are here on the same code."""
    rows, texts = read_labelled(checkout), library()
    pieces = {number: Piece(row.code, row.language, True) for number, row in enumerate(rows)}
    pieces |= {len(rows) + number: Piece(text, "python") for number, text in enumerate(texts)}
    report: dict[str, Any] = {}
    for name in ("rules", *(tool.name for tool in installed_tools()[0])):
        found, scanned = scan_with(name, pieces)
        python = [number for number, row in enumerate(rows) if row.language == "python"]
        own = {place: found.get(number, ()) for place, number in enumerate(python)}
        read = {place for place, number in enumerate(python) if number in scanned}
        for strict in (False, True) if name == "rules" else (True,):
            report[name + (", with audit" if name == "rules" and strict else "")] = {
                "labelled": agreement(rows, found, scanned, strict=strict),
                "python": agreement([rows[number] for number in python], own, read, strict=strict),
                "library": alarms(texts, found, scanned, len(rows), strict=strict),
            }
    return report


def bench_code(purplellama: Path, *, as_json: bool) -> None:
    """Print the rows."""
    report = measure(purplellama)
    rows = []
    ours = report["rules"]
    for peer in (name for name in report if name != "rules"):
        for part, title in (("labelled", "labelled lines found"), ("python", "labelled lines found, Python")):
            rows.append(
                Row(case=title, unit="share", ours=ours[part]["share"], peer=report[peer][part]["share"],
                    peer_name=peer, more_is_better=True)
            )  # fmt: skip
        each = [1000 * of["library"]["lines_found"] / of["library"]["lines"] for of in (ours, report[peer])]
        rows.append(
            Row(
                case="found in the standard library", unit="per 1,000 lines", ours=each[0], peer=each[1], peer_name=peer
            )
        )
    if as_json:
        print(json.dumps({"rows": [row.as_dict() for row in rows], "machine": machine(), "report": report}, indent=1))
        return
    for name, of in report.items():
        print(f"{name}: {json.dumps(of)}")
    show(rows, as_json=False)
