"""The verdict on a piece of code: `insecure`, `clean` or `not scanned`, with the reason.

`clean` is said only of code in a known language that could be read to its end, by scanners each of which found, in the
same run, what is known to be insecure. Everything else without a finding is `not scanned`: an unknown language, broken
syntax, too long a text, a scanner that is missing though it was asked for, that crashed, took too long or left it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from herd.errors import HerdError
from herd.guard.code.blocks import code_blocks
from herd.guard.code.languages import LANGUAGES
from herd.guard.code.rules import Finding, all_rules, find
from herd.guard.code.text import CodeText
from herd.guard.code.tools import TOOLS, Piece, Tool, installed_tools, tool_named

Verdict = Literal["insecure", "clean", "not scanned"]
MAX_BYTES = 500_000
"""Longer code is not scanned: nobody writes it by hand."""
MAX_LINE = 4_000
"""Nor is code with a longer line, in characters: the rules' time grows with its square."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What is known of one piece of code, or of one answer."""

    verdict: Verdict
    reason: str = ""
    """Why it was not scanned."""
    language: str | None = None
    findings: tuple[Finding, ...] = ()
    scanners: tuple[str, ...] = ()
    """Those that read all of it."""

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "language": self.language,
            "findings": [vars(one) for one in self.findings],
            "scanners": list(self.scanners),
        }


class Scanner:
    """The rules, with semgrep and bandit where they are installed, or with those named in `scanners`.

    Raises HerdError where one of these is missing, or where the rules do not find their own fixtures. An installed tool
    that does not work is not passed over: without a finding, its languages are then `not scanned`.
    """

    def __init__(
        self, scanners: Sequence[str] = (), *, strict: bool = False, tools: Sequence[Tool] | None = None
    ) -> None:
        check_rules()
        self.strict = strict
        self.broken: dict[str, str] = {}
        if tools is not None:
            self.tools = list(tools)
        elif scanners:
            self.tools = [tool_named(name) for name in scanners if name != "rules"]
        else:
            self.tools, self.broken = installed_tools()

    @property
    def names(self) -> dict[str, str]:
        """The scanners with their versions, as reports keep them."""
        return {"rules": f"{len(all_rules())} rules", **{tool.name: tool.version() for tool in self.tools}}

    def scan(self, code: str, language: str | None, *, fragment: bool = False, before: str = "") -> Scan:
        """One piece of code; of a `fragment` beginning and end may be missing. What is found in `before` alone, the
        code that it continues, does not count."""
        return self.scan_all([(code, language)], fragment=fragment, before=[before])[0]

    def scan_all(
        self, pieces: Sequence[tuple[str, str | None]], *, fragment: bool = False, before: Sequence[str] = ()
    ) -> list[Scan]:
        """Many pieces at once, which costs each tool one start."""
        contexts = before or [""] * len(pieces)
        refused: dict[int, str] = {}
        ready: dict[int, Piece] = {}
        for number, ((code, language), context) in enumerate(zip(pieces, contexts, strict=True)):
            if why := _unreadable(code, language):
                refused[number] = why
            else:
                assert language is not None
                ready[number] = Piece(context + code, language, fragment)
        found = {number: find(CodeText(piece.code, piece.language)) for number, piece in ready.items()}
        failed = {number: self._broken_tool(piece.language) for number, piece in ready.items()}
        used: dict[int, list[str]] = {number: ["rules"] for number in ready}
        for tool in self.tools:
            own = {number: piece for number, piece in ready.items() if piece.language in tool.languages}
            report = tool.scan(own)
            for number in own:
                found[number] = found[number] + report.found.get(number, [])
                if number in report.failed:
                    failed[number] = failed[number] or report.failed[number]
                else:
                    used[number].append(tool.name)
        scans = []
        for number, (_, language) in enumerate(pieces):
            if number in refused:
                scans.append(Scan(verdict="not scanned", reason=refused[number], language=language))
                continue
            kept = _after(found[number], contexts[number], ready[number])
            reason = failed[number] or CodeText(ready[number].code, ready[number].language).broken(fragment=fragment)
            scans.append(self._decide(kept, reason, language, used[number]))
        return scans

    def scan_answer(self, answer: str, *, language: str | None = None) -> Scan:
        """All the code in a model's answer to a request for code in `language`, where that is known."""
        return self.scan_answers([answer], languages=[language])[0]

    def scan_answers(self, answers: Sequence[str], *, languages: Sequence[str | None]) -> list[Scan]:
        blocks = [code_blocks(one, language=language) for one, language in zip(answers, languages, strict=True)]
        scans = iter(self.scan_all([(block.code, block.language) for of in blocks for block in of]))
        return [self._combine([(block.line, next(scans)) for block in of]) for of in blocks]

    def _decide(self, findings: Sequence[Finding], reason: str, language: str | None, used: Sequence[str]) -> Scan:
        grave = [one for one in findings if self.strict or one.level == "insecure"]
        verdict: Verdict = "insecure" if grave else "not scanned" if reason else "clean"
        return Scan(
            verdict=verdict,
            reason=reason if verdict == "not scanned" else "",
            language=language,
            findings=tuple(sorted(findings, key=lambda one: (one.line, one.cwe, one.scanner))),
            scanners=tuple(used),
        )

    def _combine(self, scans: Sequence[tuple[int, Scan]]) -> Scan:
        if not scans:
            return Scan(verdict="not scanned", reason="there is no code in the answer")
        verdicts = {scan.verdict for _, scan in scans}
        verdict: Verdict = next(one for one in ("insecure", "not scanned", "clean") if one in verdicts)
        languages = {scan.language for _, scan in scans}
        return Scan(
            verdict=verdict,
            reason=next((scan.reason for _, scan in scans if scan.reason), "") if verdict == "not scanned" else "",
            language=languages.pop() if len(languages) == 1 else None,
            findings=tuple(
                Finding(**{**vars(one), "line": one.line + line - 1}) for line, scan in scans for one in scan.findings
            ),
            scanners=tuple(sorted(set.intersection(*(set(scan.scanners) for _, scan in scans)))),
        )

    def _broken_tool(self, language: str) -> str:
        return next((why for name, why in self.broken.items() if language in TOOLS[name]().languages), "")


def _unreadable(code: str, language: str | None) -> str:
    """Why a piece of code cannot be scanned at all; empty if it can."""
    if language is None:
        return "its language is not known"
    if language not in LANGUAGES:
        return f"there are no rules for {language}"
    if not code.strip():
        return "it is empty"
    if len(code.encode("utf-8", "replace")) > MAX_BYTES:
        return f"it is longer than {MAX_BYTES:,} bytes"
    if max(map(len, code.splitlines()), default=0) > MAX_LINE:
        return f"it has a line of more than {MAX_LINE:,} characters"
    if "\0" in code:
        return "it is no text: it has a null byte"
    return ""


def _after(findings: Sequence[Finding], context: str, piece: Piece) -> list[Finding]:
    """Those on lines that hold anything of what comes after `context`, with numbers counted from there."""
    skipped = context.count("\n")
    return [
        one if not context else Finding(**{**vars(one), "line": one.line - skipped})
        for one in findings
        if one.line > skipped
    ]


@cache
def check_rules() -> None:
    """Every rule must find its bad fixture, and not its good one. Raises HerdError: a scanner that does not find
    what it is made for calls nothing clean."""
    for rule in all_rules():
        language = rule.languages[0]
        if not rule.find(CodeText(rule.bad, language)) or rule.find(CodeText(rule.good, language)):
            raise HerdError(f"rule {rule.id} of the code scanner does not tell its fixtures apart: reinstall Herd")
