"""Comments and strings of a piece of code, and whether its quotes and brackets are closed.

A tokenizer of comments and literals for each language, as one expression; what lies between is not analysed. It reads
any text, and says what is broken rather than stop.
"""

import ast
import re
import textwrap
import warnings
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

_DOUBLE = r'"(?:\\[\s\S]|[^"\\\n])*"'
_SINGLE = r"'(?:\\[\s\S]|[^'\\\n])*'"
_DOUBLE_LINES = r'"(?:\\[\s\S]|[^"\\])*"'
_SINGLE_LINES = r"'(?:\\[\s\S]|[^'\\])*'"
_BACKTICK = r"`(?:\\[\s\S]|[^`\\])*`"
_SLASHES = r"//[^\n]*|/\*[\s\S]*?\*/"
_REGEX = r"(?<=[(,=:\[!&|?{};])[ \t]*/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/\w*"
_HEREDOC = r"<<[-~]?[ \t]*(?P<quote>[\"']?)(?P<mark>[A-Za-z_]\w*)(?P=quote)[^\n]*\n(?:[\s\S]*?\n)?[ \t]*(?P=mark)\b"

_FORMS: dict[str, tuple[str, str, str]] = {
    # comments; strings; what opens one of the two and is left over where it is not closed
    "python": (
        r"#[^\n]*",
        rf'"""(?:\\[\s\S]|[^\\])*?"""|\'\'\'(?:\\[\s\S]|[^\\])*?\'\'\'|{_DOUBLE}|{_SINGLE}',
        r"[\"']",
    ),
    "javascript": (_SLASHES, f"{_DOUBLE}|{_SINGLE}|{_BACKTICK}|{_REGEX}", r"/\*|[\"'`]"),
    "c": (_SLASHES, f"{_DOUBLE}|{_SINGLE}", r"/\*|[\"']"),
    "cpp": (
        _SLASHES,
        rf'\bu?8?R"(?P<delimiter>[^(\s"]*)\([\s\S]*?\)(?P=delimiter)"|\b\d[\w\']*\b|{_DOUBLE}|{_SINGLE}',
        r"/\*|[\"']",
    ),
    "java": (_SLASHES, rf'"""[\s\S]*?"""|{_DOUBLE}|{_SINGLE}', r"/\*|[\"']"),
    "php": (
        r"//(?:(?!\?>)[^\n])*|#(?!\[)(?:(?!\?>)[^\n])*|/\*[\s\S]*?\*/",
        f"{_HEREDOC.replace('<<', '<<<', 1)}|{_DOUBLE_LINES}|{_SINGLE_LINES}",
        r"/\*|[\"']",
    ),
    "rust": (
        _SLASHES,
        rf"\bb?r(?P<hashes>#*)\"[\s\S]*?\"(?P=hashes)|{_DOUBLE_LINES}|'(?:\\[^'\n]+|[^'\\\n])'",
        r"/\*|\"",
    ),
    "go": (_SLASHES, rf"`[^`]*`|{_DOUBLE}|{_SINGLE}", r"/\*|[\"'`]"),
    "ruby": (
        r"#(?!\{)[^\n]*|^=begin\b[\s\S]*?^=end\b",
        f"{_HEREDOC}|{_DOUBLE_LINES}|{_SINGLE_LINES}|{_REGEX}",
        r"[\"']",
    ),
    "csharp": (
        _SLASHES,
        rf'\$?"""[\s\S]*?"""|(?:@\$?|\$@)"(?:[^"]|"")*"|{_DOUBLE}|{_SINGLE}',
        r"/\*|[\"']",
    ),
    "shell": (r"(?<![^\s;])#[^\n]*", rf"{_HEREDOC}|{_DOUBLE_LINES}|'[^']*'|\\.", r"[\"']"),
}
_TOKENS = {
    language: re.compile(f"(?P<comment>{comment})|(?P<string>{string})|(?P<open>{left})", re.MULTILINE)
    for language, (comment, string, left) in _FORMS.items()
}
_BALANCED = frozenset(_FORMS) - {"shell"}  # `case` has closing brackets without opening ones
_NOT_BRACKETS = re.compile(r"[^()\[\]{}]+")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_KEPT = re.compile(r"[^\n]")


@dataclass(frozen=True)
class CodeText:
    """A piece of code with its comments and strings known."""

    source: str
    language: str

    @cached_property
    def _spans(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[int]]:
        comments, strings, left = [], [], []
        for match in _TOKENS[self.language].finditer(self._visible):
            if match["comment"] is not None:
                comments.append(match.span())
            elif match["string"] is not None:
                strings.append(match.span())
            else:
                left.append(match.start())
        return comments, strings, left

    @cached_property
    def _visible(self) -> str:
        """PHP without the HTML around it; all of other languages."""
        if self.language != "php" or "<?" not in self.source:
            return self.source
        parts = re.split(r"(<\?(?:php\b|=)?|\?>)", self.source)
        shown, inside = [], False
        for part in parts:
            mark = re.fullmatch(r"<\?(?:php\b|=)?|\?>", part) is not None
            shown.append(part if inside and not mark else _KEPT.sub(" ", part))
            if mark:
                inside = part != "?>"
        return "".join(shown)

    @cached_property
    def code(self) -> str:
        """The code with blanks for comments, of the same length."""
        return _blank(self._visible, self._spans[0])

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _ in self._spans[1]]

    def in_string(self, place: int) -> bool:
        """Whether a character lies inside a string, behind its first quote."""
        index = bisect_right(self._starts, place) - 1
        return index >= 0 and self._spans[1][index][0] < place < self._spans[1][index][1]

    def line(self, place: int) -> int:
        """The number of the line of a character, from 1."""
        return self.source.count("\n", 0, place) + 1

    def line_text(self, number: int) -> str:
        lines = self.source.split("\n")
        return lines[number - 1].strip()[:200]

    def broken(self, *, fragment: bool) -> str:
        """Why the code cannot be read to its end, in words; empty if it can. Of a fragment the beginning and the end
        may be missing, so that only quotes and comments must be closed."""
        if self._spans[2]:
            place = self._spans[2][0]
            return f"line {self.line(place)} has {self._visible[place]!r} that is not closed"
        if fragment:
            return ""
        if self.language == "python":
            return _python_error(self.source)
        return self._unbalanced() if self.language in _BALANCED else ""

    def _unbalanced(self) -> str:
        bare = _blank(self.code, self._spans[1])
        depth: list[str] = []
        for place, mark in ((match.start(), match[0]) for match in re.finditer(r"[()\[\]{}]", bare)):
            if mark not in _PAIRS:
                depth.append(mark)
            elif not depth or depth.pop() != _PAIRS[mark]:
                return f"line {self.line(place)} has {mark!r} without its opening bracket"
        return f"{depth[-1]!r} is not closed" if depth else ""


def _blank(text: str, spans: list[tuple[int, int]]) -> str:
    parts, end = [], 0
    for start, stop in spans:
        parts += [text[end:start], _KEPT.sub(" ", text[start:stop])]
        end = stop
    return "".join([*parts, text[end:]])


def _python_error(source: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(textwrap.dedent(source))
    except SyntaxError as error:
        return f"it is not valid Python: line {error.lineno}, {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"it is not valid Python: {type(error).__name__}"
    return ""
