"""The languages that are scanned: their names in fences, the endings of their files, and a guess from the text."""

import re
from pathlib import PurePath

LANGUAGES = ("python", "javascript", "c", "cpp", "java", "php", "rust", "go", "ruby", "csharp", "shell")

NAMES = {
    **{name: name for name in LANGUAGES},
    **dict.fromkeys(("py", "py3", "python3", "python2", "pycon", "ipython", "sage"), "python"),
    **dict.fromkeys(("js", "jsx", "mjs", "node", "nodejs", "ts", "tsx", "typescript", "ecmascript"), "javascript"),
    **dict.fromkeys(("c++", "cc", "cxx", "hpp", "h++", "arduino", "cuda"), "cpp"),
    **dict.fromkeys(("c#", "cs", "c-sharp", "dotnet"), "csharp"),
    **dict.fromkeys(("golang",), "go"),
    **dict.fromkeys(("rb", "rails"), "ruby"),
    **dict.fromkeys(("rs",), "rust"),
    **dict.fromkeys(("php3", "php4", "php5", "php7", "php8", "phtml"), "php"),
    **dict.fromkeys(("bash", "sh", "zsh", "ksh", "dash", "shell-script", "shellscript", "console-script"), "shell"),
}
"""What a fence, or a data set, calls them."""

ENDINGS = {
    **dict.fromkeys((".py", ".pyw", ".pyi"), "python"),
    **dict.fromkeys((".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".mts", ".cts"), "javascript"),
    **dict.fromkeys((".c", ".h"), "c"),
    **dict.fromkeys((".cpp", ".cc", ".cxx", ".c++", ".hpp", ".hh", ".hxx", ".ino", ".cu", ".cuh"), "cpp"),
    **dict.fromkeys((".php", ".phtml", ".inc"), "php"),
    **dict.fromkeys((".sh", ".bash", ".zsh", ".ksh"), "shell"),
    ".java": "java",
    ".rs": "rust",
    ".go": "go",
    ".rb": "ruby",
    ".rake": "ruby",
    ".cs": "csharp",
}
FILE_ENDING = {
    "python": ".py",
    "javascript": ".ts",
    "c": ".c",
    "cpp": ".cpp",
    "java": ".java",
    "php": ".php",
    "rust": ".rs",
    "go": ".go",
    "ruby": ".rb",
    "csharp": ".cs",
    "shell": ".sh",
}
"""What a piece of code is called when another program scans it. TypeScript's parser reads JavaScript too."""

DATA_NAMES = frozenset(
    {
        *("", "text", "txt", "plain", "plaintext", "none", "output", "console", "log", "markdown", "md", "diff"),
        *("json", "jsonl", "yaml", "yml", "toml", "ini", "csv", "tsv", "math", "latex", "mermaid"),
    }
)
"""Names of fences that say nothing of a language: what is inside decides."""

_SIGNS: dict[str, str] = {
    "python": r"^\s*(?:async\s+)?def \w+\(.*\).*:\s*(?:#.*)?$|^\s*(?:from [\w.]+ )?import [\w., ]+(?: as \w+)?\s*$"
    r"|^\s*(?:if|for|while|with|try|elif|class) ?.*:\s*$|^\s*print\(.*\)\s*$|^\s*@\w+(?:\.\w+)*(?:\(.*\))?\s*$",
    "javascript": r"^\s*(?:export\s+)?(?:const|let|var)\s+[\w{\[].*=|=>|^\s*(?:export\s+)?(?:async\s+)?function\b"
    r"|\bconsole\.log\(|\brequire\(['\"]|\bmodule\.exports\b|^\s*import\b.*\bfrom\s+['\"]|\bdocument\.\w+",
    "c": r"^\s*#\s*include\s*[<\"][\w./]+\.h[>\"]|\b(?:int|void|char|size_t|static)\s+\**\w+\s*\([^;]*\)\s*\{?\s*$"
    r"|\b(?:printf|malloc|free|strlen|memcpy|sizeof)\s*\(|->\w+|^\s*(?:char|int|unsigned|struct)\s+\*?\w+.*;\s*$",
    "cpp": r"^\s*#\s*include\s*<\w+>|\bstd::\w+|^\s*using namespace\b|\bcout\s*<<|\bcin\s*>>|^\s*template\s*<"
    r"|\b(?:public|private|protected):\s*$|\bnew \w+[\[(;]|::\w+\(",
    "java": r"^\s*(?:public|private|protected)\s+(?:static\s+)?(?:final\s+)?[\w<>\[\]]+\s+\w+\s*[({=;]|^\s*import java"
    r"|\bSystem\.out\.print|^\s*package [\w.]+;|^\s*public (?:final )?(?:class|interface)\b|@Override\b",
    "php": r"<\?php|<\?=|^\s*\$\w+\s*=|\becho\s+[\"'$]|\$this->|\bfunction\s+\w*\s*\(\s*(?:\$|\))"
    r"|\$_(?:GET|POST|SERVER)\b",
    "rust": r"\bfn \w+(?:<[^>]*>)?\s*\(.*\{?\s*$"
    r"|\blet (?:mut )?\w+|\bprintln!\(|^\s*use (?:std|crate|super)::|\bimpl\b.*\{"
    r"|^\s*#\[derive|\bunwrap\(\)|&mut \w+|\bmatch .*\{\s*$",
    "go": r"^\s*package \w+\s*$|\bfunc (?:\(\w+ \*?\w+\) )?\w*\(.*\{\s*$|:=|^\s*import \(|\bfmt\.\w+\(|\bif err != nil",
    "ruby": r"^\s*def [\w.?!]+(?:\(.*\))?\s*$|^\s*end\s*$|\bputs\b|^\s*require ['\"]|\bdo \|.*\|\s*$|\.each\b"
    r"|^\s*class \w+ < ",
    "csharp": r"^\s*using System|^\s*namespace [\w.]+|\bConsole\.Write|\bstring\s+\w+\s*=|\bvar \w+ = new \w+"
    r"|^\s*(?:public|private|internal)\s+(?:static\s+|async\s+|override\s+)*[\w<>\[\]]+\s+\w+\s*(?:\(|\{ get)",
    "shell": r"^#!.*\b(?:ba|z|k|da)?sh\b|^\s*(?:if|elif|while) \[\[? |^\s*(?:fi|done|esac)\s*$|^\s*echo\s"
    r"|\$\{?\w+\}?(?=[\"'\s/])"
    r"|^\s*export \w+=|^\s*(?:sudo|apt(?:-get)?|curl|wget|chmod|mkdir|cd|grep|sed|awk|rm|cp|mv|tar|pip|npm|git)\s",
}
_SIGN = {language: re.compile(pattern, re.MULTILINE) for language, pattern in _SIGNS.items()}
_INCLUDES = (
    (_SIGN["cpp"], "cpp", "c"),
    (re.compile(r"^\s*using System|^\s*namespace [\w.]+|\bConsole\.Write", re.MULTILINE), "csharp", "java"),
)
_SHEBANG = re.compile(r"#!.*\b(python|node|php|ruby|bash|zsh|ksh|dash|sh)\b")
_CODE_LINE = re.compile(
    r"[;{}:,(\[\\]\s*$|^\s*[}\])]|^\s*[@$#<]|^\s*(?:end|fi|done|else|esac|return\b|import\b|from\b|use\b|const\b|let\b|var\b|"
    r"sudo\b|echo\b|cd\b|export\b|curl\b|chmod\b|rm\b|pip\b|npm\b)|[\w\])]\s*(?::=|[-+*/|&]?=)\s*\S|\w\([^()]*\)|=>|->|::|^\s*//"
)


def language_named(name: str) -> str | None:
    """The language that a fence or a data set names; None if it is none that is scanned."""
    word = name.strip().lower().strip("{}").lstrip(".")
    return NAMES.get(word)


def language_of_file(path: str | PurePath) -> str | None:
    """The language of a file by its ending."""
    return ENDINGS.get(PurePath(path).suffix.lower())


def guess_language(code: str) -> str | None:
    """The language that more lines look like than any other; None without a sign, or where two are level."""
    if (match := _SHEBANG.match(code.lstrip())) is not None:
        return {"node": "javascript", "python": "python", "php": "php", "ruby": "ruby"}.get(match[1], "shell")
    if "<?php" in code:
        return "php"
    counts = {language: len(pattern.findall(code)) for language, pattern in _SIGN.items()}
    for sign, one, other in _INCLUDES:  # much of C is C++ too
        if sign.search(code):
            counts[one] += counts.pop(other)
    best, *rest = sorted(counts, key=lambda language: -counts[language])
    return best if counts[best] > counts[rest[0]] else None


def looks_like_code(text: str) -> bool:
    """Whether at least half of the lines look like code of any language, rather than like prose."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and 2 * sum(bool(_CODE_LINE.search(line)) for line in lines) >= len(lines)
