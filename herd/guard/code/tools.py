"""semgrep and bandit as scanners: found, checked for their version, and tested anew in every run.

Beside the code to be scanned lies, for each language, a file that is known to be insecure. A run that does not find it
says nothing about the rest, and neither does one that crashes, takes too long or leaves a file out: those files are
`failed`, with the reason. Both run without a network and without the user's settings; semgrep reads our own rules only
(`semgrep.yaml`), never the registry.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, ClassVar, Protocol

from herd.errors import HerdError, unknown
from herd.guard.code.languages import FILE_ENDING
from herd.guard.code.rules import Finding, Level

KNOWN_BAD = "herd_known_bad"
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Piece:
    """Code to be scanned."""

    code: str
    language: str
    fragment: bool = False
    """Whether its beginning and end may be missing, so that part of it may not parse."""


@dataclass
class Report:
    """What a scanner says of the pieces, by their numbers."""

    found: dict[int, list[Finding]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    """Pieces that were not scanned, and why."""


class Tool(Protocol):
    """A scanner that is another program."""

    name: str

    @property
    def languages(self) -> frozenset[str]: ...

    def version(self) -> str:
        """Raises HerdError where it is not installed, or of a version that is not known to work."""

    def scan(self, pieces: Mapping[int, Piece]) -> Report:
        """Never raises: what could not be scanned is in the report."""


class _Failed(Exception):
    """A run that says nothing about any file."""


def _program(name: str) -> str:
    """Beside the running Python, as in an environment that is not activated, or on the PATH."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    if (path := beside or shutil.which(name)) is None:
        raise HerdError(f"{name} is not installed: pip install {name}, in an environment of its own if you like")
    return path


def _checked_version(name: str, low: tuple[int, int], high: int) -> str:
    """As the program's environment records it beside its folder, else as it says: it takes seconds to start."""
    program = Path(_program(name))
    recorded = [path.name for path in program.parent.parent.glob(f"lib/python3*/site-packages/{name}-*.dist-info")]
    text = recorded[0] if recorded else _run([str(program), "--version"], cwd=program.parent, timeout_s=TIMEOUT_S)
    match = re.search(r"\b(\d+)\.(\d+)[.\d]*", text)
    if match is None:
        raise _Failed(f"{name} --version says {text[:60]!r}")
    version = match[0].rstrip(".")
    if not low <= (int(match[1]), int(match[2])) < (high, 0):
        raise _Failed(f"{name} {version} is not in the range {low[0]}.{low[1]} to {high}, which is known to work")
    return version


def _run(command: Sequence[str], *, cwd: Path, timeout_s: float, ok: Sequence[int] = (0,)) -> str:
    """Standard output of a program that sees neither the user's settings nor accounts."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "SYSTEMROOT") if name in os.environ}
    quiet = {"SEMGREP_SEND_METRICS": "off", "SEMGREP_ENABLE_VERSION_CHECK": "0", "PYTHONUTF8": "1"}
    env = {**kept, **quiet, "HOME": str(cwd), "XDG_CONFIG_HOME": str(cwd), "XDG_CACHE_HOME": str(cwd)}
    name = Path(command[0]).name
    try:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise _Failed(f"{name} cannot be started: {error}") from error
    try:
        out, err = child.communicate(timeout=timeout_s)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise _Failed(f"{name} took longer than {timeout_s:g} s") from None
        raise
    if child.returncode not in ok:
        last = (err or out).strip().splitlines()[-1:] or ["nothing"]
        raise _Failed(f"{name} ended with {child.returncode} and said {last[0][:200]!r}")
    return str(out)


class _Program:
    """What the two have in common: files in a folder, a report as JSON, a file that must be found."""

    name: str
    low: tuple[int, int]
    high: int
    known_bad: ClassVar[dict[str, str]]

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s

    @property
    def languages(self) -> frozenset[str]:
        return frozenset(self.known_bad)

    def version(self) -> str:
        try:
            return _checked_version(self.name, self.low, self.high)
        except _Failed as error:
            raise HerdError(str(error)) from error

    def scan(self, pieces: Mapping[int, Piece]) -> Report:
        report = Report()
        if not pieces:
            return report
        with tempfile.TemporaryDirectory(prefix="herd-scan-") as name:
            folder = Path(name).resolve()
            code = folder / "code"
            code.mkdir()
            for number, piece in pieces.items():
                path = code / f"piece_{number}{FILE_ENDING[piece.language]}"
                text = textwrap.dedent(piece.code) if piece.language == "python" else piece.code
                path.write_text(text, encoding="utf-8", errors="replace")
            languages = {piece.language for piece in pieces.values()}
            for language in languages:
                (code / f"{KNOWN_BAD}{FILE_ENDING[language]}").write_text(self.known_bad[language])
            try:
                found, failed = self._read(json.loads(self._call(folder, code)))
            except (_Failed, HerdError) as error:
                return Report(failed=dict.fromkeys(pieces, str(error)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = f"{self.name} wrote a report that cannot be read ({type(error).__name__})"
                return Report(failed=dict.fromkeys(pieces, why))
            for number, piece in pieces.items():
                file = f"piece_{number}{FILE_ENDING[piece.language]}"
                if f"{KNOWN_BAD}{FILE_ENDING[piece.language]}" not in found:
                    report.failed[number] = f"{self.name} did not find what is known to be insecure {piece.language}"
                elif file in failed and not (piece.fragment and failed[file].startswith(PARTLY)):
                    report.failed[number] = failed[file]
                report.found[number] = found.get(file, [])
        return report

    def _call(self, folder: Path, code: Path) -> str:
        raise NotImplementedError

    def _read(self, report: Any) -> tuple[dict[str, list[Finding]], dict[str, str]]:
        """Findings, and why files were not scanned, by the files' names."""
        raise NotImplementedError


PARTLY = "part of the code cannot be parsed"


class Semgrep(_Program):
    """semgrep with our rules."""

    name = "semgrep"
    low, high = (1, 100), 2
    known_bad: ClassVar[dict[str, str]] = {
        "python": "import subprocess\ndef f(x):\n    subprocess.run(x, shell=True)\n",
        "javascript": "function f(x) { eval(x); }\n",
        "c": "void f(char *a, char *b) { strcpy(a, b); }\n",
        "cpp": "void f(char *a, char *b) { strcpy(a, b); }\n",
        "java": 'class A { void f(String x) throws Exception { Runtime.getRuntime().exec("ls " + x); } }\n',
        "php": "<?php eval($x);\n",
        "go": 'package a\nimport "crypto/md5"\nfunc f(x []byte) { md5.Sum(x) }\n',
        "ruby": "def f(x)\n  eval(x)\nend\n",
        "csharp": "class A { void F() { var b = new BinaryFormatter(); } }\n",
    }

    def _call(self, folder: Path, code: Path) -> str:
        with as_file(files("herd.guard.code") / "semgrep.yaml") as rules:
            shutil.copy(rules, folder / "rules.yaml")
        command = [
            *(_program(self.name), "scan", "--config", str(folder / "rules.yaml"), "--json", "--quiet"),
            *("--metrics", "off", "--disable-version-check", "--no-git-ignore", "--no-rewrite-rule-ids"),
            *("--jobs", "1", "--timeout", "20", "--max-target-bytes", "0"),
            *("--disable-nosem", str(code)),
        ]
        # Errors end it with other codes; its report says which.
        return _run(command, cwd=folder, timeout_s=self.timeout_s, ok=(0, 1, 2, 3, 4, 5, 7))

    def _read(self, report: Any) -> tuple[dict[str, list[Finding]], dict[str, str]]:
        found: dict[str, list[Finding]] = {}
        for row in report["results"]:
            extra = row["extra"]
            finding = Finding(
                rule=row["check_id"],
                cwe=extra["metadata"]["cwe"],
                level="insecure",
                message=extra["message"].strip(),
                line=row["start"]["line"],
                text="",
                scanner=self.name,
            )
            found.setdefault(Path(row["path"]).name, []).append(finding)
        failed: dict[str, str] = {}
        for row in report["errors"]:
            kind = row["type"] if isinstance(row["type"], str) else row["type"][0]
            if "path" not in row:
                raise _Failed(f"semgrep reports {kind}: {str(row.get('message', ''))[:200]!r}")
            partly = kind in {"PartialParsing", "Syntax error", "SyntaxError", "Other syntax error"}
            failed[Path(row["path"]).name] = PARTLY if partly else f"semgrep reports {kind}"
        scanned = {Path(path).name for path in report["paths"]["scanned"]}
        return found, _AllBut(scanned, failed, self.name)


class Bandit(_Program):
    """bandit, for Python. Its findings of low severity or low confidence are no more than hints, and are left out."""

    name = "bandit"
    low, high = (1, 7), 2
    known_bad: ClassVar[dict[str, str]] = {
        "python": "import subprocess\ndef f(x):\n    subprocess.Popen(x, shell=True)\n"
    }

    def _call(self, folder: Path, code: Path) -> str:
        (folder / "bandit.yaml").write_text("{}\n")
        command = [_program(self.name), "-q", "-f", "json", "-ll", "-ii", "-c", str(folder / "bandit.yaml")]
        return _run([*command, "--ignore-nosec", "-r", str(code)], cwd=folder, timeout_s=self.timeout_s, ok=(0, 1))

    def _read(self, report: Any) -> tuple[dict[str, list[Finding]], dict[str, str]]:
        found: dict[str, list[Finding]] = {}
        for row in report["results"]:
            level: Level = "audit" if row["test_id"] in {"B104", "B108"} else "insecure"
            finding = Finding(
                rule=row["test_id"],
                cwe=f"CWE-{row['issue_cwe']['id']}",
                level=level,
                message=row["issue_text"],
                line=row["line_number"],
                text="",
                scanner=self.name,
            )
            found.setdefault(Path(row["filename"]).name, []).append(finding)
        failed = {Path(row["filename"]).name: f"bandit reports {row['reason']}" for row in report["errors"]}
        scanned = {Path(name).name for name in report["metrics"] if name != "_totals"}
        return found, _AllBut(scanned, failed, self.name)


class _AllBut(dict[str, str]):
    """Why files were not scanned: those with an error, and all that the report does not name."""

    def __init__(self, scanned: set[str], failed: dict[str, str], name: str) -> None:
        super().__init__(failed)
        self._scanned, self._name = scanned, name

    def __contains__(self, path: object) -> bool:
        return super().__contains__(path) or path not in self._scanned

    def __missing__(self, path: str) -> str:
        return f"{self._name} left it out"


TOOLS: dict[str, type[_Program]] = {"semgrep": Semgrep, "bandit": Bandit}


def installed_tools() -> tuple[list[Tool], dict[str, str]]:
    """The tools that are here, and those that are here and do not work, with the reason."""
    tools: list[Tool] = []
    broken: dict[str, str] = {}
    for name, kind in TOOLS.items():
        try:
            _program(name)
        except HerdError:
            continue
        try:
            kind().version()
            tools.append(kind())
        except HerdError as error:
            broken[name] = str(error)
    return tools, broken


def tool_named(name: str) -> Tool:
    """One tool, which must be there. Raises HerdError otherwise."""
    if name not in TOOLS:
        raise unknown("scanner", name, ("rules", *TOOLS))
    tool = TOOLS[name]()
    tool.version()
    return tool
