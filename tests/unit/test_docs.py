"""The pages: their links lead somewhere, and their commands are understood; the short ones run."""

import re
import shlex
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from published_configs import FORMS

from herd.cli import main
from herd.commands import COMMANDS
from herd.core.files import write_json

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN_BY_A_RUN = "runs/"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    here = [link for link in links if not link.startswith(("http", "mailto")) and WRITTEN_BY_A_RUN not in link]
    assert [link for link in here if not (page.parent / link).exists()] == []


def commands_of(page: Path) -> list[str]:
    """The command lines of a page: its sh blocks, and blocks that are indented and begin with `herd`. Blocks in which a
    comment says `not run in a test` are left out, here and by the reader's eye."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n.*?```|^(?:    herd [^\n]*\n)+", text, flags=re.S | re.M)
    tried = [block for block in blocks if "not run in a test" not in block]
    lines = [line for block in tried for line in block.splitlines() if "```" not in line]
    return [said for line in lines if (said := re.split(r"(?:^|\s)# ?", line)[0].strip())]


COMMAND_LINES = [(page.name, line) for page in PAGES for line in commands_of(page)]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES, ids=[f"{page}-{line}" for page, line in COMMAND_LINES])
def test_each_command_line_is_understood(
    page: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    if words[0] == "make":
        assert words[1] in TARGETS
    elif words[:2] == ["python", "-c"]:
        compile(words[2], page, "exec")
    else:
        # `printf … | herd chat MODEL` and `torchrun … -m herd pretrain …` have the command at their end.
        assert "herd" in words, f"{page}: {line} is neither tried nor marked as not run in a test"
        assert understood(words[words.index("herd") + 1 :], monkeypatch) == 1, capsys.readouterr().err


def understood(args: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many commands the parser calls for `args`; none does its work."""
    name = next(name for name in (" ".join(args[:2]), args[0]) if name in COMMANDS)
    command, done = COMMANDS[name], []
    if command.usage is not None:
        monkeypatch.setitem(COMMANDS, name, replace(command, function=done.append))
    else:
        monkeypatch.setitem(
            COMMANDS, name, replace(command, function=wraps(command.function)(lambda *a, **k: done.append(a)))
        )
    main(args)
    return len(done)


@pytest.mark.parametrize("line", sorted({line for _, line in COMMAND_LINES if line.startswith("herd plan")}))
def test_each_plan_line_runs(
    line: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/sft").symlink_to(tiny_folder)
    Path("Llama-4-Scout-17B-16E").mkdir()
    write_json(Path("Llama-4-Scout-17B-16E/config.json"), FORMS["scout-instruct"])
    if "--here" in line:
        pytest.skip("measures the machine for seconds")
    assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err


def test_the_python_of_the_readme_runs(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/sft").symlink_to(tiny_folder)
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert len(block.splitlines()) <= 10
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    names["model"].pipeline.engine.close()
    assert names["reply"].finish_reason in {"stop", "length"}
    assert len(capsys.readouterr().out) > 40


@pytest.mark.parametrize(
    "line",
    [
        "herd chat models/none", "herd serve models/none", "herd generate models/none p.jsonl --out a.jsonl",
        "herd evaluate models/none --data data/none --out out", "herd convert models/none out",
        "herd report models/none",
        "herd plan models/none", "herd adopt models/none out", "herd sft models/none --data data/none --out out",
    ],
)  # fmt: skip
def test_a_missing_folder_is_one_line_that_names_it(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))
    Path("p.jsonl").write_text('{"prompt": "Hello"}\n')
    assert main(line.split()[1:]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("herd: ") and "models/none" in said[0] and "bug" not in said[0]


def test_the_files_that_contributing_names_are_there():
    named = re.findall(r"`([\w/]+\.(?:py|cpp|toml))`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    roots = [ROOT, ROOT / "herd", ROOT / "herd/model", ROOT / "herd/model/formats", ROOT / "herd/native"]
    assert len(named) > 60
    assert [name for name in named if "NAME" not in name and not any((root / name).exists() for root in roots)] == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index] == ["README.md"]


def test_the_first_screen_is_the_two_commands():
    screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:24])
    assert "make demo" in screen
    assert "make test" in screen
    assert "<!-- results -->" in screen
