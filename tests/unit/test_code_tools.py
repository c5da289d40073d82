"""semgrep and bandit: a run that does not find what is known to be insecure makes nothing clean."""

import json
import os
import shutil
import stat
import sys
import tomllib
from pathlib import Path

import pytest

from herd.errors import HerdError
from herd.guard.code.scanner import Scanner
from herd.guard.code.tools import Bandit, Piece, Semgrep, installed_tools, tool_named

GOOD, BAD = "def add(a, b):\n    return a + b\n", "subprocess.run(x, shell=True)\n"

FAKE = """#!{python}
import json, pathlib, sys, time
if "--version" in sys.argv:
    print("{version}"); sys.exit()
folder = pathlib.Path(sys.argv[-1])
files = sorted(str(path) for path in folder.iterdir())
def found(path):
    return {{"check_id": "fake", "path": path, "start": {{"line": 1}},
             "extra": {{"message": "m", "metadata": {{"cwe": "CWE-78"}}}}}}
bad = [path for path in files if "known_bad" in path or "shell=True" in open(path).read()]
report = {{"results": [found(path) for path in bad], "errors": [], "paths": {{"scanned": files}}}}
{behaviour}
print(json.dumps(report))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a semgrep that behaves as it is told; nothing else is on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("sys.executable", str(folder / "python"))

    def install(behaviour: str = "", version: str = "1.150.0") -> None:
        program = folder / "semgrep"
        program.write_text(FAKE.format(python=PYTHON, version=version, behaviour=behaviour))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return install


PYTHON = sys.executable


def verdicts(*pieces: str, timeout_s: float = 60) -> list[tuple[str, str]]:
    scanner = Scanner(tools=[Semgrep(timeout_s=timeout_s)])
    return [(scan.verdict, scan.reason) for scan in scanner.scan_all([(piece, "python") for piece in pieces])]


def test_a_scanner_that_works_lets_code_be_clean(fake):
    fake()
    assert verdicts(GOOD, BAD) == [("clean", ""), ("insecure", "")]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ('report["results"] = []', "semgrep did not find what is known to be insecure python"),
        ('report = {"results": [], "errors": [], "paths": {"scanned": []}}', "semgrep did not find"),
        ('report["paths"]["scanned"] = [path for path in files if "piece" not in path]', "semgrep left it out"),
        ('report["errors"] = [{"type": "Timeout", "path": files[-1]}]', "semgrep reports Timeout"),
        ('report["errors"] = [{"type": "Rule parse error", "message": "x"}]', "semgrep reports Rule parse error"),
        ("sys.exit(9)", "semgrep ended with 9"),
        ("print('no JSON'); sys.exit()", "a report that cannot be read"),
        ("print('[]'); sys.exit()", "a report that cannot be read"),
        ("time.sleep(60)", "semgrep took longer than 5 s"),
    ],
)
def test_a_scanner_that_scans_nothing_makes_nothing_clean(fake, behaviour: str, reason: str):
    fake(behaviour)
    [(verdict, why)] = verdicts(GOOD, timeout_s=5)
    assert verdict == "not scanned"
    assert reason in why


def test_what_our_rules_find_is_insecure_whatever_the_other_scanner_does(fake):
    fake("sys.exit(9)")
    assert verdicts(BAD) == [("insecure", "")]


def test_part_of_a_fragment_may_not_parse_but_not_of_a_whole(fake):
    fake('report["errors"] = [{"type": ["PartialParsing", []], "path": files[-1]}]')
    scanner = Scanner(tools=[Semgrep()])
    assert scanner.scan(GOOD, "python", fragment=True).verdict == "clean"
    assert scanner.scan(GOOD, "python").verdict == "not scanned"


@pytest.mark.parametrize("version", ["1.20.0", "2.0.1", "0.9", "what"])
def test_a_version_that_is_not_known_to_work_is_not_passed_over(fake, version: str):
    fake(version=version)
    tools, broken = installed_tools()
    assert [tool.name for tool in tools] == []
    assert set(broken) == {"semgrep"}
    scan = Scanner().scan(GOOD, "python")
    assert (scan.verdict, scan.reason) == ("not scanned", broken["semgrep"])
    assert Scanner().scan("a + b\n", "shell").verdict == "clean"  # which semgrep is not asked about
    with pytest.raises(HerdError, match="semgrep"):
        Scanner(["semgrep"])


def test_a_scanner_that_is_asked_for_and_missing_is_an_error_and_one_that_is_not_asked_for_is_not(fake):
    with pytest.raises(HerdError, match="semgrep is not installed"):
        Scanner(["rules", "semgrep"])
    with pytest.raises(HerdError, match="unknown scanner 'semgerp', did you mean 'semgrep'"):
        tool_named("semgerp")
    assert list(Scanner().names) == ["rules"]
    assert Scanner().scan(GOOD, "python").verdict == "clean"


def test_the_program_sees_neither_the_users_settings_nor_secrets(fake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEMGREP_APP_TOKEN", "secret")
    monkeypatch.setenv("SEMGREP_RULES", "p/ci")
    fake("import os; sys.exit(sum(name in os.environ for name in ('SEMGREP_APP_TOKEN', 'SEMGREP_RULES')))")
    assert "ended with 0" not in verdicts(GOOD)[0][1]
    assert "cannot be read" in verdicts(GOOD)[0][1]  # it ended with 0 and printed nothing


def _real(name: str) -> None:
    if shutil.which(name) is None and not (Path(sys.executable).parent / name).exists():
        pytest.skip(f"{name} is not installed")


def test_bandit_finds_what_is_insecure_and_says_what_it_cannot_parse():
    _real("bandit")
    pieces = {
        0: Piece("import pickle\nx = pickle.loads(y)\n", "python"),
        1: Piece(GOOD, "python"),
        2: Piece("def f(:\n", "python"),
    }
    report = Bandit().scan(pieces)
    assert {number: [one.cwe for one in found] for number, found in report.found.items()} == {
        0: ["CWE-502"],
        1: [],
        2: [],
    }
    assert list(report.failed) == [2]


FIXTURES = tomllib.loads(Path(__file__).with_name("semgrep_fixtures.toml").read_text())


@pytest.mark.slow
def test_semgrep_with_our_rules_finds_the_flow_of_data_and_each_known_bad_file():
    _real("semgrep")
    pieces = {number: Piece(rule["bad"], rule["language"]) for number, rule in enumerate(FIXTURES.values())}
    pieces |= {100 + number: Piece(rule["good"], rule["language"]) for number, rule in enumerate(FIXTURES.values())}
    extra = {"ruby": "x = 1\n", "cpp": "int x;\n"}
    pieces |= {200 + number: Piece(code, language) for number, (language, code) in enumerate(extra.items())}
    report = Semgrep().scan(pieces)
    assert report.failed == {}
    for number, name in enumerate(FIXTURES):
        assert name in {one.rule for one in report.found[number]}, name
        assert report.found[100 + number] == [], name


@pytest.mark.slow
def test_semgrep_needs_no_network(tmp_path: Path):
    _real("semgrep")
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("a process without a network needs root and unshare")
    import subprocess

    (tmp_path / "x.py").write_text("import subprocess\ndef f(q):\n    subprocess.run(q, shell=True)\n")
    command = [sys.executable, "-m", "herd", "guard", "scan", str(tmp_path / "x.py"), "--scanners", "semgrep", "--json"]
    ran = subprocess.run(["unshare", "-n", *command], capture_output=True, text=True, check=False)
    assert ran.returncode == 3, ran.stderr
    assert {one["scanner"] for one in json.loads(ran.stdout)["files"][0]["findings"]} == {"rules", "semgrep"}
