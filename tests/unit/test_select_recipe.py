"""Selections in recipes: a stage that others name in their config."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herd.commands.stages import STAGES
from herd.config import SftConfig
from herd.errors import HerdError
from herd.stages.recipe import load_recipe
from herd.stages.runner import run_recipe
from herd.stages.unfinished import changes, request


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What a recipe takes for a data folder."""
    (tmp_path / "data" / "tokenizer").mkdir(parents=True)
    return tmp_path / "data"


def tables_of(tmp_path: Path, data: Path, tiny_folder: Path, text: str) -> str:
    path = tmp_path / "own.toml"
    path.write_text(f'data = "{data}"\nmodel = "{tiny_folder}"\n{text}')
    return str(path)


def test_in_a_recipe_a_selection_is_a_stage_among_others(data: Path, tiny_folder: Path, tmp_path: Path):
    text = f"""
    [stage.first]
    kind = "sft"
    [select]
    by = ["first", "{tiny_folder}"]
    teacher = "first"
    [sft]
    from = "first"
    selection = "select"
    """
    nodes = load_recipe(tables_of(tmp_path, data, tiny_folder, text), STAGES)
    run = tmp_path / "run"
    assert nodes["select"].config_in(run).by == (str(run / "first"), str(tiny_folder))
    assert nodes["select"].config_in(run).teacher == str(run / "first")
    assert nodes["sft"].config_in(run).selection == str(run / "select")
    assert nodes["first"].config_in(run) == nodes["first"].config
    # Options of `herd run` may name a folder instead.
    other = replace(nodes["sft"], config=replace(nodes["sft"].config, selection="elsewhere"))
    assert other.config_in(run).selection == "elsewhere"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("[select]\n[sft]\n", ['[sft] does not use [select]: set selection = "select"']),
        ('[select]\n[sft]\nselection = "select"\n', []),
        ('[select]\n[sft]\n[stage.two]\nkind = "sft"\nselection = "select"\n', []),
        ("[sft]\n[select]\n", []),
    ],
)
def test_a_selection_that_no_stage_below_uses_is_reported_before_the_run(
    text: str, lines: list[str], data: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    nodes = load_recipe(tables_of(tmp_path, data, tiny_folder, text), STAGES)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(nodes, tmp_path / "run", do=stop)
    assert [line for line in capsys.readouterr().out.splitlines() if "does not use" in line] == lines


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ('[sft]\nselection = "select"\n[select]\n', "[sft] selection = 'select': [select] comes later in the file"),
        ('[select]\n[sft]\nselection = "selct"\n', "unknown table in"),
        ('[select]\nby = ["select"]\n', "by = 'select' is the stage itself"),
        ('[sft]\n[stage.two]\nkind = "sft"\nselection = "sft"\n', "[sft] writes no selection"),
    ],
)
def test_a_recipe_that_names_no_such_stage_is_refused(
    text: str, reported: str, data: Path, tiny_folder: Path, tmp_path: Path
):
    with pytest.raises(HerdError) as refused:
        load_recipe(tables_of(tmp_path, data, tiny_folder, text), STAGES)
    assert reported in str(refused.value)


def test_a_moved_selection_is_the_same_and_another_one_is_not(tiny_folder: Path, data: Path, tmp_path: Path):
    kind, config = STAGES["sft"], SftConfig(selection=str(tmp_path / "a"))
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "selection.parquet").write_text(text)

    def asked(config: SftConfig) -> dict[str, Any]:
        return request(config, {"model": tiny_folder, "data": data, **kind.inputs(config)})

    assert asked(config) == asked(replace(config, selection=str(tmp_path / "b")))
    others = (replace(config, selection=str(tmp_path / "c")), replace(config, selection=""))
    assert all(changes(asked(config), asked(other), other) for other in others)
