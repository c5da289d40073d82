"""`herd guard scan`: files, folders or the standard input, each with its verdict."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from herd.errors import HerdError, unknown
from herd.guard.code.languages import LANGUAGES, guess_language, language_named, language_of_file
from herd.guard.code.scanner import MAX_BYTES, Scan, Scanner, Verdict

ANSWERS = frozenset({".md", ".markdown"})
"""Files with code in fences, as answers have it."""
NO_CODE = frozenset(
    {
        *(".txt", ".rst", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".lock", ".csv", ".tsv", ".svg"),
        *(
            ".png",
            ".jpg",
            ".jpeg",
            ".gif",
            ".webp",
            ".pdf",
            ".ico",
            ".woff",
            ".woff2",
            ".css",
            ".parquet",
            ".safetensors",
        ),
    }
)
"""Files of a folder that are passed over."""
SKIPPED = frozenset({"node_modules", "__pycache__", "venv", "vendor"})
"""Folders that are passed over, beside hidden ones: what was not written here."""
EXIT: dict[Verdict, int] = {"clean": 0, "insecure": 3, "not scanned": 4}
"""Exit codes; 1 and 2 are those of failures."""


def scan(
    place: str, *, language: str = "", scanners: Sequence[str] = (), strict: bool = False, as_json: bool = False
) -> int:
    """Print the verdicts; the exit code of the worst."""
    if language and language_named(language) is None:
        raise unknown("language", language, LANGUAGES)
    asked = language_named(language) if language else None
    scanner = Scanner(scanners, strict=strict)
    if place == "-":
        text = sys.stdin.buffer.read(MAX_BYTES + 1).decode("utf-8", "replace")
        scans = {"-": scanner.scan_answer(text, language=asked)}
    else:
        scans = scan_files(scanner, Path(place), asked)
    worst = max(
        (one.verdict for one in scans.values()), key=lambda verdict: ("clean", "not scanned", "insecure").index(verdict)
    )
    if as_json:
        rows = [{"path": path, **one.as_json()} for path, one in scans.items()]
        report = {"verdict": worst, "scanners": scanner.names, "broken_scanners": scanner.broken, "files": rows}
        print(json.dumps(report, ensure_ascii=False))
        return EXIT[worst]
    for path, one in scans.items():
        print(f"{path}: {one.verdict}" + (f", {one.reason}" if one.reason else ""))
        for finding in one.findings:
            level = "" if finding.level == "insecure" else " (audit)"
            print(f"  line {finding.line}: {finding.cwe} {finding.rule}{level}: {finding.message}")
    print(
        f"{worst}: {len(scans)} scanned by {', '.join(f'{name} {version}' for name, version in scanner.names.items())}"
    )
    for name, why in scanner.broken.items():
        print(f"{name} does not work: {why}")
    return EXIT[worst]


def scan_files(scanner: Scanner, place: Path, language: str | None) -> dict[str, Scan]:
    """The verdicts on a file or the files of a folder."""
    if not place.exists():
        raise HerdError(f"{place} does not exist: give a file, a folder, or - for the standard input")
    paths = [place] if place.is_file() else sorted(_files(place))
    if not paths:
        raise HerdError(f"{place} has no file that could be code")
    scans: dict[str, Scan] = {}
    pieces: dict[str, tuple[str, str | None]] = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                text = file.read(MAX_BYTES + 1).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            scans[str(path)] = Scan(verdict="not scanned", reason=f"it cannot be read as text ({type(error).__name__})")
            continue
        if path.suffix.lower() in ANSWERS and language is None:
            found = scanner.scan_answer(text)
            if found.findings or found.language or place.is_file() or "```" in text:
                scans[str(path)] = found
            continue
        pieces[str(path)] = text, language or language_of_file(path) or guess_language(text)
    scans |= dict(zip(pieces, scanner.scan_all(list(pieces.values())), strict=True))
    if not scans:
        raise HerdError(f"{place} has no file that could be code")
    return dict(sorted(scans.items()))


def _files(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
        for name in names:
            path = Path(here, name)
            if (
                not name.startswith(".")
                and path.suffix.lower() not in NO_CODE
                and path.is_file()
                and not path.is_symlink()
            ):
                yield path
