"""Books keep their own order and show nothing that is held out."""

import zipfile
from pathlib import Path

import pytest

from herd.data.packages.books import BOOKS, TREE, books
from herd.data.sources.fetch import Pack
from herd.data.sources.package_list import SOURCES
from herd.data.text.contamination import EvaluationIndex

NOTHING = EvaluationIndex({}, 13)


def pack_of(name: str, members: dict[str, str], folder: Path) -> Pack:
    path = folder / f"{name.replace('/', '-')}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    source = next(source for source in SOURCES if source.name == name)
    return Pack(source=source, path=path, version=source.version, sha256=source.sha256)


@pytest.fixture
def packs(tmp_path: Path) -> dict[str, Pack]:
    name = "debian-handbook"
    folder = BOOKS[name]
    contents = '<div class="toc"><a href="z.html">Z</a><a href="b.html#x">B</a><a href="z.html#2">Z</a></div>'
    pages = {"index": contents, "b": "<p>Second page.</p><p>Kept out.</p>", "z": "<p>First page.</p>", "a": "<p>No</p>"}
    made = {f"{folder}/{page}.html": f"<body>{body}</body>" for page, body in pages.items()}
    tree = {"reasoning_gym/b.py": "def b():\n    pass\n", "reasoning_gym/a.py": "x = 1\n"}
    return {name: pack_of(name, made, tmp_path), TREE: pack_of(TREE, tree, tmp_path)}


def test_pages_follow_the_contents_and_files_their_paths(packs: dict[str, Pack]) -> None:
    handbook, tree = books(packs, set(), NOTHING)
    assert handbook.text == "First page.\n\nSecond page.\nKept out."
    assert tree.text == "# reasoning_gym/a.py\nx = 1\n\n# reasoning_gym/b.py\ndef b():\n    pass"


def test_held_out_lines_are_in_no_book(packs: dict[str, Pack]) -> None:
    assert books(packs, {"Kept out."}, NOTHING)[0].text == "First page.\n\nSecond page."
    assert [book.source for book in books(packs, {"First page.", "Second page.", "Kept out."}, NOTHING)] == [TREE]


def test_a_page_with_a_passage_of_an_evaluation_set_is_in_no_book_and_is_counted(packs: dict[str, Pack]) -> None:
    index = EvaluationIndex({"exam": ["reasoning gym a py x 1 and so on", "second page kept out"]}, 4)
    handbook, tree = books(packs, set(), index)
    assert handbook.text == "First page." and handbook.contaminated == {"exam": 1}
    assert tree.text == "# reasoning_gym/b.py\ndef b():\n    pass" and tree.contaminated == {"exam": 1}
