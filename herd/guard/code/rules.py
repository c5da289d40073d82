r"""Rules of our own: one TOML file a language, each rule with a fixture that it finds and one that it does not.

A rule is an expression over the code without its comments. It counts where it begins outside of a string (`anywhere`
lifts that), and its line is that of the group `at`, else of its beginning. `unless` is sought in the lines of the
match, `unless_text` and `needs` in the whole code. `level` is `insecure`, or `audit` for what depends on its use, as
a weak random number does. `<<NAME>>` stands for an expression of MACROS. Categories are those of the Common Weakness
Enumeration (cwe.mitre.org); patterns and fixtures are ours.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from herd.guard.code.languages import LANGUAGES
from herd.guard.code.text import CodeText

Level = Literal["insecure", "audit"]
PATTERNS = ("pattern", "unless", "unless_text", "needs")
"""Fields of a rule that are expressions."""

MACROS = {
    "STR": r"""(?:"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""",
    "LITERAL": r"""\s*[rRbBuU@L]{0,2}(?:"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')\s*[,)]""",
    "ARGS": r"(?:[^()]|\((?:[^()]|\([^()]*\))*\)){0,400}?",
    "SQL": r"(?i:select\s|insert\s+into\b|update\s+\S+\s+set\b|delete\s+from\b|drop\s+table\b|\bwhere\s)",
    "SECURITY": r"(?i:passw|passwd|token|secret|salt|nonce|otp\b|otp_|session|csrf|api_?key|auth|crypt|reset_?code)",
    "WEB_PY": r"request\.(?:args|form|values|json|GET|POST|files|params|query_params|data|cookies)",
    "WEB_JS": r"(?:req|request|ctx)\.(?:query|params|body|cookies|headers|request)",
    "WEB_PHP": r"\$_(?:GET|POST|REQUEST|COOKIE)",
    "WEB_GO": r"r\.(?:URL\.Query|FormValue|PostFormValue|Form|Header|PathValue)",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One place that is insecure."""

    rule: str
    cwe: str
    """`CWE-78`; empty if the scanner names none."""
    level: Level
    message: str
    line: int
    """From 1."""
    text: str
    """The line."""
    scanner: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A pattern of insecure code."""

    id: str
    cwe: int
    message: str
    pattern: re.Pattern[str]
    bad: str
    good: str
    languages: tuple[str, ...]
    level: Level = "insecure"
    unless: re.Pattern[str] | None = None
    unless_text: re.Pattern[str] | None = None
    needs: re.Pattern[str] | None = None
    anywhere: bool = False

    def find(self, text: CodeText, *, after: int = 0) -> list[Finding]:
        """Where the rule matches, from character `after` on, once a line."""
        code = text.code
        if (self.needs and not self.needs.search(code)) or (self.unless_text and self.unless_text.search(code)):
            return []
        found: dict[int, Finding] = {}
        for match in self.pattern.finditer(code):
            if match.end() <= after or (not self.anywhere and text.in_string(match.start())):
                continue
            if self.unless and self.unless.search(_lines(code, *match.span())):
                continue
            place = match.start("at") if "at" in match.re.groupindex and match["at"] is not None else match.start()
            line = text.line(place)
            found[line] = Finding(
                rule=self.id,
                cwe=f"CWE-{self.cwe}",
                level=self.level,
                message=self.message,
                line=line,
                text=text.line_text(line),
                scanner="rules",
            )
        return list(found.values())


def _lines(code: str, start: int, end: int) -> str:
    """The whole lines of a match."""
    stop = code.find("\n", end)
    return code[code.rfind("\n", 0, start) + 1 : stop if stop >= 0 else len(code)]


@cache
def all_rules() -> tuple[Rule, ...]:
    """Every rule."""
    folder = files("herd.guard.code") / "rules"
    tables = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return tuple(rule for table in tables for rule in _read(tomllib.loads(table.read_text(encoding="utf-8"))))


@cache
def rules_for(language: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in all_rules() if language in rule.languages)


def _read(table: dict[str, Any]) -> list[Rule]:
    languages = tuple(table["languages"]) or LANGUAGES
    rules = []
    for row in table["rule"]:
        fields: dict[str, Any] = {name: _compile(value) if name in PATTERNS else value for name, value in row.items()}
        fields["languages"] = tuple(row.get("languages", languages))
        assert set(fields["languages"]) <= set(LANGUAGES)
        rules.append(Rule(**fields))
    return rules


def _compile(pattern: str) -> re.Pattern[str]:
    for name, meaning in MACROS.items():
        pattern = pattern.replace(f"<<{name}>>", meaning)
    return re.compile(pattern, re.MULTILINE)


def find(text: CodeText, *, after: int = 0) -> list[Finding]:
    """All that the rules find, by line. Where a rule finds what another of the same weakness does too, the graver."""
    found: dict[tuple[int, str], Finding] = {}
    for rule in rules_for(text.language):
        for finding in rule.find(text, after=after):
            place = (finding.line, finding.cwe)
            if place not in found or found[place].level == "audit":
                found[place] = finding
    return sorted(found.values(), key=lambda finding: (finding.line, finding.cwe))
