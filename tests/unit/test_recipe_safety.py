"""`[safety]` of a recipe: what it adds to the tables of others, and what it leaves as it is."""

from pathlib import Path

import pytest

from herd.commands.stages import STAGES
from herd.errors import HerdError
from herd.stages.recipe import load_recipe, unused_stages

ALL = """
[data]
[model]
text_only = true
[safety]
demonstrations = 70
heldout = 9
[sft]
[guard]
[rl]
[dpo]
run = "rl"
[report]
"""


def load(folder: Path, text: str):
    path = folder / "own.toml"
    path.write_text(text)
    return load_recipe(str(path), STAGES)


def test_the_table_adds_demonstrations_rewards_and_an_evaluation_of_each_model_that_chats(tmp_path: Path):
    nodes = load(tmp_path, ALL)
    assert list(nodes) == (
        ["data", "model", "sft", "evaluate-sft", "guard", "rl", "evaluate-rl", "dpo", "evaluate-dpo", "report"]
    )  # the order of the file, each evaluation behind its model
    shown = [(one.environment, one.num, one.heldout) for one in nodes["data"].config.demonstrations]
    assert shown == [("refusals", 30, 9), ("twins", 40, 9)]
    for stage in ("sft", "rl", "dpo"):
        evaluation = nodes[f"evaluate-{stage}"]
        assert evaluation.parents["model"] == stage and evaluation.config.chats == 9
        assert evaluation.config.kinds == ("refusals", "twins")
    assert nodes["rl"].config.environments == ("refusals", "twins") and nodes["rl"].parents["model"] == "sft"
    config = nodes["rl"].config_in(tmp_path / "run")
    assert config.inputs() == {"guard": tmp_path / "run" / "guard"}  # so another guard makes rl begin again
    shares = config.shares()
    assert shares.pop(f"guard/{tmp_path}/run/guard") == pytest.approx(1 / 3) and shares["twins"] == 1 / 3


def test_without_the_table_nothing_is_added(tmp_path: Path):
    nodes = load(tmp_path, ALL.replace("[safety]\ndemonstrations = 70\nheldout = 9\n", ""))
    assert list(nodes) == ["data", "model", "sft", "guard", "rl", "dpo", "report"]
    assert nodes["data"].config.demonstrations == () and nodes["rl"].config.guard == ""


def test_what_a_table_sets_itself_stays(tmp_path: Path):
    text = """
    [safety]
    [[data.demonstrations]]
    environment = "twins"
    num = 5
    [model]
    [sft]
    [evaluate]
    kinds = ["flag"]
    [stage.other]
    kind = "sft"
    from = "model"
    [stage.cyber]
    kind = "evaluate"
    suite = "cyber"
    [guard]
    [rl]
    environments = ["digits"]
    guard = ""
    [stage.own]
    kind = "evaluate"
    """
    nodes = load(tmp_path, text)
    assert [(one.environment, one.num) for one in nodes["data"].config.demonstrations] == [
        ("twins", 5), ("refusals", 1200)
    ]  # fmt: skip
    assert nodes["evaluate"].config.kinds == ("flag", "refusals", "twins")  # of sft, the nearest above
    assert nodes["own"].config.kinds == () and nodes["own"].parents["model"] == "rl"  # asks all kinds anyway
    assert "evaluate-sft" not in nodes and "evaluate-rl" not in nodes
    assert nodes["evaluate-other"].parents["model"] == "other"  # a suite of its own asks no refusals
    assert nodes["rl"].config.environments == ("digits",) and nodes["rl"].config.guard == ""
    assert nodes["guard"].parents["model"] == "other"


def test_a_model_is_never_trained_or_evaluated_from_a_guard_by_accident(tmp_path: Path):
    nodes = load(tmp_path, "[data]\n[model]\n[sft]\n[guard]\n[evaluate]\n")
    assert nodes["evaluate"].parents["model"] == "sft"
    with pytest.raises(HerdError, match=r"\[guard\] writes no model"):
        load(tmp_path, '[data]\n[model]\n[sft]\n[guard]\n[evaluate]\nfrom = "guard"\n')


def test_a_guard_may_be_trained_further_where_from_names_it(tmp_path: Path):
    first, other = ("[stage." + name + ']\nkind = "guard"\n' for name in ("first", "other"))
    nodes = load(tmp_path, f'[data]\n[model]\n[sft]\n{first}[guard]\nfrom = "first"\n{other}')
    assert [nodes[name].parents["model"] for name in ("first", "guard", "other")] == ["sft", "first", "sft"]
    nodes = load(tmp_path, f'[data]\n[model]\n[sft]\n{first}[guard]\nfrom = "first"\n[rl]\nguard = "guard"\n')
    assert unused_stages(nodes) == []
    nodes = load(tmp_path, f"[data]\n[model]\n[sft]\n{first}{other}[rl]\n")
    assert unused_stages(nodes) == [f'[rl] does not use [{name}]: set guard = "{name}"' for name in ("first", "other")]
    nodes = load(tmp_path, f'[data]\n[model]\n[sft]\n{first}{other}mean_with = ["first"]\n[rl]\nguard = "other"\n')
    assert unused_stages(nodes) == []  # the mean uses the first


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("[data]\n[safety]\nnum = 3\n", r"unknown key in .*own\.toml \[safety\]: 'num'"),
        ("[data]\n[safety]\nheldout = 0\n", r"\[safety\]: heldout=0"),
        ("safety = 3\n[data]\n", r"safety.* = 3 stands alone"),
        ('[model]\ndata = "x"\n[safety]\n', r"\[safety\] adds demonstrations to \[data\]"),
        ("[data]\ndemonstrations = 3\n[safety]\n", r"\[data\] demonstrations = 3"),
        ("[data]\n[model]\n[evaluate]\nkinds = 3\n[safety]\n", r"\[evaluate\] kinds = 3"),
    ],
)
def test_a_mistake_in_it_is_reported_in_one_line(tmp_path: Path, text: str, reported: str):
    with pytest.raises(HerdError, match=reported):
        load(tmp_path, text)
