"""The pages: their links lead somewhere, and their commands exist."""

import re
from pathlib import Path

import pytest

from herd.commands import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN_BY_A_RUN = "runs/"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    here = [link for link in links if not link.startswith(("http", "mailto")) and WRITTEN_BY_A_RUN not in link]
    assert [link for link in here if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path):
    blocks = re.findall(r"```sh\n(.*?)```|^((?:    herd .*\n)+)", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    said = re.findall(r"^\s*herd ([a-z]+(?: [a-z]+)?)", "\n".join(map("".join, blocks)), flags=re.M)
    assert [words for words in said if words not in COMMANDS and words.split()[0] not in COMMANDS] == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index] == ["README.md"]


def test_the_first_screen_is_the_two_commands():
    screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:24])
    assert "make demo" in screen
    assert "make test" in screen
    assert "<!-- results -->" in screen
