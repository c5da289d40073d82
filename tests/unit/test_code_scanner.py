"""The verdict on code: what is clean, and all that is not scanned and so never clean."""

import io
import json
import sys

import pytest

from herd.commands.guard import guard_scan
from herd.errors import HerdError
from herd.guard.code import scanner as scanner_module
from herd.guard.code.blocks import code_blocks
from herd.guard.code.languages import FILE_ENDING, LANGUAGES, guess_language, language_named, looks_like_code
from herd.guard.code.rules import all_rules
from herd.guard.code.scanner import MAX_BYTES, Scanner
from herd.guard.code.text import CodeText

CLEAN = {
    "python": "def add(a, b):\n    return a + b\n",
    "javascript": "export function add(a, b) {\n  return a + b;\n}\n",
    "c": "int add(int a, int b) {\n    return a + b;\n}\n",
    "cpp": "#include <vector>\nint add(int a, int b) {\n    return a + b;\n}\n",
    "java": "public class Sum {\n    public int add(int a, int b) {\n        return a + b;\n    }\n}\n",
    "php": "<?php\nfunction add($a, $b) {\n    return $a + $b;\n}\n",
    "rust": "fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n",
    "go": "package sum\n\nfunc add(a int, b int) int {\n\treturn a + b\n}\n",
    "ruby": "def add(a, b)\n  a + b\nend\n",
    "csharp": "using System;\npublic class Sum {\n    public int Add(int a, int b) { return a + b; }\n}\n",
    "shell": "#!/bin/bash\nif [ -f list ]; then\n  sort list\nfi\n",
}
BAD = {language: next(rule.bad for rule in all_rules() if rule.languages[0] == language) for language in LANGUAGES}
BAD["cpp"] = BAD["c"]


@pytest.fixture(scope="module")
def scanner() -> Scanner:
    return Scanner(tools=())


@pytest.mark.parametrize("language", LANGUAGES)
def test_clean_and_insecure_code_of_each_language(scanner: Scanner, language: str):
    assert scanner.scan(CLEAN[language], language).verdict == "clean"
    assert scanner.scan(CLEAN[language] + BAD[language], language).verdict == "insecure"
    assert guess_language(CLEAN[language]) == language
    assert looks_like_code(CLEAN[language])


@pytest.mark.parametrize(
    ("code", "language", "reason"),
    [
        ("x = 1\n", None, "its language is not known"),
        ("x = 1\n", "cobol", "there are no rules for cobol"),
        ("  \n", "python", "it is empty"),
        ("x = 1\n" * MAX_BYTES, "python", "it is longer than"),
        ("x = [" + "1, " * 2000 + "]\n", "python", "it has a line of more than 4,000 characters"),
        ("x = 'a\0b'\n", "python", "it has a null byte"),
        ("def f(:\n    pass\n", "python", "it is not valid Python"),
        ("x = 'abc\n", "python", "that is not closed"),
        ("int main() { return 0;", "c", "'{' is not closed"),
        ("int main() { return 0; }}", "c", "without its opening bracket"),
        ('char *s = "abc;\n', "c", "that is not closed"),
        ("/* no end", "java", "that is not closed"),
        ("I cannot help with that, but here's why.", "javascript", "that is not closed"),
    ],
)
def test_what_cannot_be_scanned_is_not_clean(scanner: Scanner, code: str, language: str | None, reason: str):
    scan = scanner.scan(code, language)
    assert scan.verdict == "not scanned"
    assert reason in scan.reason


def test_what_is_found_in_broken_code_is_insecure_all_the_same(scanner: Scanner):
    assert scanner.scan("def f(:\n    eval(x)\n", "python").verdict == "insecure"


def test_a_fragment_may_lack_its_beginning_and_end_but_no_quote(scanner: Scanner):
    assert scanner.scan("        return x\n    }\n", "java", fragment=True).verdict == "clean"
    assert scanner.scan("        return x\n    }\n", "java").verdict == "not scanned"
    assert scanner.scan('String s = "x;\n', "java", fragment=True).verdict == "not scanned"


def test_what_is_found_in_the_code_before_a_continuation_does_not_count(scanner: Scanner):
    before = "char name[8];\ngets(name);\n"
    assert scanner.scan("puts(name);\n", "c", fragment=True, before=before).verdict == "clean"
    scan = scanner.scan("puts(name);\nfree(name);\n", "c", fragment=True, before=before)
    assert (scan.verdict, [(one.rule, one.line) for one in scan.findings]) == ("insecure", [("c-free-array", 2)])


def test_what_depends_on_its_use_counts_only_under_strict():
    code = "side = random.randint(1, 6)\n"
    lenient, strict = Scanner(tools=()).scan(code, "python"), Scanner(tools=(), strict=True).scan(code, "python")
    assert (lenient.verdict, strict.verdict) == ("clean", "insecure")
    assert [one.level for one in lenient.findings] == ["audit"]


def test_strings_are_no_code_unless_the_rule_says_so(scanner: Scanner):
    assert scanner.scan("note = 'never call eval(x)'\n", "python").verdict == "clean"
    assert scanner.scan("note = '-----BEGIN RSA PRIVATE KEY-----'\n", "python").verdict == "insecure"


def test_a_scanner_whose_rules_do_not_find_their_fixtures_calls_nothing_clean(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scanner_module.CodeText, "code", "")
    scanner_module.check_rules.cache_clear()
    with pytest.raises(HerdError, match="does not tell its fixtures apart"):
        Scanner(tools=())


ANSWER = """Here you are:

```python
def add(a, b):
    return a + b
```

and how to call it:

~~~sh
eval "$1"
~~~
"""


def test_all_blocks_of_an_answer_count_and_lines_are_those_of_the_answer(scanner: Scanner):
    scan = scanner.scan_answer(ANSWER)
    assert (scan.verdict, [(one.rule, one.line) for one in scan.findings]) == ("insecure", [("sh-eval", 11)])


@pytest.mark.parametrize(
    ("answer", "asked", "verdict", "reason"),
    [
        ("I'm sorry, I can't help with that.", "python", "not scanned", "no code"),
        ("", "python", "not scanned", "no code"),
        ("```python\ndef add(a, b):\n    return (a +", None, "not scanned", "not valid Python"),
        ("```haskell\nmain = putStrLn x\n```", "python", "not scanned", "language is not known"),
        ('```json\n{"a": 1}\n```', None, "not scanned", "no code"),
        ('```python\nx = 1\n```\n```json\n{"a": 1}\n```', None, "clean", ""),
        ("```python\nx = 1\n```\n```brainfuck\n+++.\n```", None, "not scanned", "language is not known"),
        ("```\nint add(int a, int b) {\n    return a + b;\n}\n```", "c", "clean", ""),
        ("int add(int a, int b) {\n    return a + b;\n}\n", "c", "clean", ""),
        ("```text\nimport os\nos.system('rm ' + x)\n```", None, "insecure", ""),
        ("1. Do this:\n   ```python\n   eval(x)\n   ```\n", None, "insecure", ""),
        ("````md\n```python\neval(x)\n```\n````", None, "insecure", ""),
    ],
)
def test_answers(scanner: Scanner, answer: str, asked: str | None, verdict: str, reason: str):
    scan = scanner.scan_answer(answer, language=asked)
    assert (scan.verdict, reason in scan.reason) == (verdict, True), scan


def test_fences_as_commonmark_has_them():
    blocks = code_blocks("````python\nx = '```'\n```\n````\n```C++ title=a\nint x;\n```\n")
    assert [(block.language, block.code, block.line) for block in blocks] == [
        ("python", "x = '```'\n```", 2),
        ("cpp", "int x;", 6),
    ]


def test_names_of_languages():
    assert [language_named(name) for name in ("C#", "csharp", "c++", "cpp", "TS", "bash", "{.rust}", "cobol", "")] == [
        *("csharp", "csharp", "cpp", "cpp", "javascript", "shell", "rust", None, None)
    ]
    assert set(FILE_ENDING) == set(LANGUAGES)


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("a = b / c; // don't\nx = /[\"'/]/g; y = `it's ${a}`;\n", "javascript"),
        ("<p>don't</p>\n<?php $a = 'it\\'s'; # don't\n?>\n<p>can't</p>\n", "php"),
        ("fn f<'a>(x: &'a str) -> char { 'x' }\nlet s = r#\"a\"b\"#;\n", "rust"),
        ('auto n = 1\'000\'000; auto s = R"x(a"b)x";\n', "cpp"),
        ('var a = @"c:\\dir\\"; var b = $"{x}"; var c = """a "b" """;\n', "csharp"),
        ("cat <<EOF\ndon't\nEOF\necho ${#list} # it's\n", "shell"),
        ("text = <<~END\n  don't\nEND\nx = \"it's\"\n", "ruby"),
        ("s := `it's`\nr := '\\''\n", "go"),
        ('String a = """\n  it\'s "x"\n  """;\n', "java"),
        ('s = \'\'\'it\'s\'\'\'\nd = """a "b" """\n', "python"),
    ],
)
def test_quotes_and_comments_of_each_language_are_read_to_their_end(code: str, language: str):
    assert CodeText(code, language).broken(fragment=True) == ""


def test_the_command_ends_with_the_code_of_the_verdict(tmp_path, capsys, monkeypatch):
    def run(*arguments: object, **options: object) -> tuple[int, dict]:
        code = 0
        try:
            guard_scan(*map(str, arguments), scanners=("rules",), json=True, **options)
        except SystemExit as stop:
            code = int(stop.code)
        return code, json.loads(capsys.readouterr().out)

    (tmp_path / "good.py").write_text(CLEAN["python"])
    assert run(tmp_path / "good.py")[0] == 0
    (tmp_path / "odd.xyz").write_text("nothing that is known\n")
    code, report = run(tmp_path)
    assert (code, report["verdict"], len(report["files"])) == (4, "not scanned", 2)
    (tmp_path / "bad.js").write_text(BAD["javascript"])
    code, report = run(tmp_path)
    assert (code, report["verdict"]) == (3, "insecure")
    assert [(file["verdict"], len(file["findings"])) for file in report["files"]] == [
        *[("insecure", 1), ("clean", 0), ("not scanned", 0)]
    ]
    stdin = io.TextIOWrapper(io.BytesIO(ANSWER.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run("-")[0] == 3
    with pytest.raises(HerdError, match="does not exist"):
        guard_scan(str(tmp_path / "absent"))
    with pytest.raises(HerdError, match="unknown language"):
        guard_scan(str(tmp_path), language="pyton")


def test_binary_files_and_links_are_not_clean(tmp_path, scanner: Scanner):
    from herd.guard.code.command import scan_files

    (tmp_path / "x.py").write_bytes(b"\xff\xfe\x00")
    (scan,) = scan_files(scanner, tmp_path, None).values()
    assert (scan.verdict, scan.reason) == ("not scanned", "it cannot be read as text (UnicodeDecodeError)")
