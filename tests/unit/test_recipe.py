"""herd.stages.recipe: what a recipe may say."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
from recipe_world import LIFE, Inner, Needy, Settings, kinds, recipe

from herd.commands.stages import STAGES
from herd.config import (
    PRESETS,
    EncoderConfig,
    ModelConfig,
    MoEConfig,
    NewModelConfig,
    PresetName,
    PretrainConfig,
    PretrainPlan,
    VisionConfig,
    preset,
    renamed,
)  # fmt: skip
from herd.config.new_model import MOE
from herd.errors import HerdError
from herd.stages.recipe import load_recipe, recipe_path
from herd.stages.settings import make_config, refuse_renamed


def test_values_take_the_types_of_their_fields(tmp_path: Path):
    text = """
    [data]
    steps = 7
    share = 1
    fast = false
    languages = ["de", "fr"]
    rule = "adamw"
    limit = 5
    [data.inner]
    betas = [0, 1]
    """
    config = load_recipe(recipe(tmp_path, text), kinds())["data"].config
    assert config == Settings(
        steps=7,
        share=1.0,
        fast=False,
        languages=("de", "fr"),
        rule="adamw",
        limit=5,
        inner=Inner(rate=0.7, betas=(0.0, 1.0)),  # the rate as the stage has it, not as Inner would
    )
    assert type(config.share) is float


def test_a_count_may_be_written_short(tmp_path: Path):
    config = load_recipe(recipe(tmp_path, '[data]\nsteps = "200K"\nlimit = "1M"\n'), kinds())["data"].config
    assert (config.steps, config.limit) == (204_800, 1_048_576)


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("[dta]", r"unknown table in .*own\.toml: 'dta', did you mean 'data'"),
        ("[data]\nstep = 3", r"unknown key in .*own\.toml \[data\]: 'step', did you mean 'steps'"),
        ("[data.inner]\nrat = 3", r"unknown key in .*own\.toml \[data\] inner: 'rat', did you mean 'rate'"),
        ('[data]\nsteps = "3"', r"own\.toml \[data\] steps = '3' must be int, it is str"),
        ('[data]\nsteps = "3.5K"', r"\[data\] steps = '3\.5K' is not a whole number: write it as 8192"),
        ("[data]\nsteps = true", r"\[data\] steps = True must be int, it is bool"),
        ("[data]\nsteps = 3.5", r"\[data\] steps = 3\.5 must be int, it is float"),
        ("[data]\nfast = 1", r"\[data\] fast = 1 must be bool, it is int"),
        ("[data]\nlimit = 1.5", r"\[data\] limit = 1\.5 must be int, it is float"),
        ('[data]\nlanguages = "de"', r"\[data\] languages = 'de' must be tuple\[str, \.\.\.\], it is str"),
        ("[data]\nlanguages = [1]", r"\[data\] languages\[0\] = 1 must be str, it is int"),
        ("[data.inner]\nbetas = [1]", r"\[data\] inner betas = \[1\] must be tuple\[float, float\], it is list"),
        ("[data]\ninner = 3", r"\[data\] inner = 3 must be Inner, it is int"),
        ('[data]\nrule = "adam"', r"\[data\] rule = 'adam', did you mean 'adamw'"),
        ("[data]\nrule = 3", r"\[data\] rule = '3', known: adamw, muon"),
        ("[data]\nsteps = -1", r"own\.toml \[data\]: steps=-1 is negative"),
        ("data = 3", r"own\.toml: data = 3 stands alone"),
        ("[data", r"own\.toml is not valid TOML: "),
        ("[train]", r"\[train\] reads a text folder and no table above it writes one: add \[data\] above it"),
        ("[train]\n[data]", r"\[train\] reads a text folder and no table above it writes one"),
    ],
)
def test_a_mistake_is_reported_with_its_place_and_value(tmp_path: Path, text: str, reported: str):
    with pytest.raises(HerdError, match=reported) as error:
        load_recipe(recipe(tmp_path, text), kinds())
    assert "\n" not in str(error.value)


def test_a_field_without_a_default_is_missed():
    with pytest.raises(HerdError, match=r"\[needy\] lacks path"):
        make_config(Needy, {}, where="[needy]")


def test_recipes_are_found_by_name_and_by_path(tmp_path: Path):
    assert recipe_path("tiny").name == "tiny.toml"
    with pytest.raises(HerdError, match="unknown recipe 'tinny', did you mean 'tiny'"):
        recipe_path("tinny")
    with pytest.raises(HerdError, match=r"no recipe at .*nowhere\.toml"):
        recipe_path(str(tmp_path / "nowhere.toml"))
    assert recipe_path(recipe(tmp_path, "")) == tmp_path / "own.toml"


def models_of(folder: Path, text: str) -> dict[str, object]:
    """Each stage of a recipe of the house's stages → the stage or folder whose model it reads."""
    nodes = load_recipe(recipe(folder, text), STAGES)
    return {name: node.parents["model"] for name, node in nodes.items() if "model" in node.kind.reads}


@pytest.mark.parametrize(
    ("tables", "models"),
    [
        ("[evaluate]", {"evaluate": "pretrain"}),
        ("[sft]\n[evaluate]", {"sft": "pretrain", "evaluate": "sft"}),
        ("[midtrain]\n[sft]\n[evaluate]", {"midtrain": "pretrain", "sft": "midtrain", "evaluate": "sft"}),
        (
            '[midtrain]\n[sft]\nfrom = "pretrain"\n[evaluate]',
            {"midtrain": "pretrain", "sft": "pretrain", "evaluate": "sft"},
        ),
        ('[evaluate]\nfrom = "vision"', {"evaluate": "vision"}),
        # A kind twice, one after the other.
        (
            '[midtrain]\n[stage.longer]\nkind = "midtrain"\n[sft]\n[evaluate]',
            {"midtrain": "pretrain", "longer": "midtrain", "sft": "longer", "evaluate": "sft"},
        ),
        # Two lines from one stage, each with its evaluation: the nearest above it.
        (
            '[sft]\n[evaluate]\n[stage.code]\nkind = "sft"\nfrom = "pretrain"\n[stage.measure]\nkind = "evaluate"',
            {"sft": "pretrain", "evaluate": "sft", "code": "pretrain", "measure": "code"},
        ),
        # The order is that of the file, though TOML gives the tables under `stage` together.
        (
            '[stage.first]\nkind = "sft"\n[evaluate]\n[stage.second]\nkind = "sft"',
            {"first": "pretrain", "evaluate": "first", "second": "first"},
        ),
        ('[evaluate]\nlanguages = ["""\n[stage.sham]\n"""]\n[sft]', {"evaluate": "pretrain", "sft": "pretrain"}),
    ],
)
def test_a_stage_begins_with_the_nearest_model_above_it_or_with_the_one_it_names(
    tmp_path: Path, tables: str, models: dict[str, str]
):
    assert models_of(tmp_path, LIFE + tables) == {"vision": "model", "pretrain": "vision", **models}


@pytest.mark.parametrize(
    ("table", "reported"),
    [
        ('[sft]\nfrom = "midtrian"', r"unknown table in .* \[sft\] from = 'midtrian', did you mean 'midtrain'"),
        ("[sft]\nfrom = 3", r"\[sft\] from = 3 must be the name of a table above or a folder"),
        ('[sft]\nfrom = "sft"', r"\[sft\] from = 'sft' is the stage itself: name one of: model, vision, pretrain, mid"),
        ('[sft]\nfrom = "x"\n[stage.x]\nkind = "sft"', r"\[sft\] from = 'x': \[x\] comes later in the file, move it"),
        (
            '[sft]\nfrom = "x"\n[stage.x]\nkind = "sft"\nfrom = "y"\n[stage.y]\nkind = "sft"\nfrom = "sft"',
            r"\[sft\] from = 'x' closes a cycle, sft → x → y → sft: name one of: model",
        ),
        ('[sft]\nfrom = "data"', r"\[sft\] from = 'data': \[data\] writes no model"),
        ('[sft]\nfrom = "models/none"', r"\[sft\] from = 'models/none': there is no such folder"),
        ('[sft]\nfrom = "empty"', r"\[sft\] from = 'empty' is no model folder: it has no config\.json"),
        ('[sft]\ndata = "empty"', r"\[sft\] data = 'empty' is no data folder: it has no tokenizer"),
        ('[sft]\ndata = "pretrain"', r"\[sft\] data = 'pretrain': \[pretrain\] writes no data, name one of: data"),
        ('[stage.x]\nkind = "data"\nfrom = "pretrain"', r"\[stage\.x\] from = 'pretrain': data reads no model, remove"),
        (
            '[stage.x]\nkind = "report"\nfrom = "sft"',
            r"unknown table in .* from = 'sft', known: midtrain, model",
        ),
        ('[x]\nkind = "sft"', r"\[x\]: a stage with a kind is written \[stage\.x\]"),
        ('[sft]\nkind = "sft"', r"\[sft\]: a stage with a kind is written \[stage\.sft\]"),
        ('[stage.x]\nfrom = "sft"', r"\[stage\.x\] lacks kind, which is one of: data, model, vision"),
        ('[stage.x]\nkind = "stf"', r"unknown stage in .*\[stage\.x\] kind = 'stf', did you mean 'sft'"),
        ('[stage."a.1"]\nkind = "sft"', r"\[stage\.a\.1\]: the name is that of a folder too: use letters"),
        ('[sft]\n[stage.sft]\nkind = "sft"', r"\[stage\.sft\]: there is a \[sft\] too"),
        ("[stage]\nsft = 3", r"a stage with a name of its own is a table: \[stage\.NAME\]"),
    ],
)
def test_a_graph_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, table: str, reported: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(HerdError, match=reported) as error:
        load_recipe(recipe(tmp_path, f"{LIFE}[midtrain]\n{table}\n"), STAGES)
    assert "\n" not in str(error.value)


def test_a_run_may_begin_with_folders_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for folder, sign in ("models/scout", "config.json"), ("mine", "config.json"), ("corpus", "tokenizer"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / sign).touch()
    text = 'data = "corpus"\n[pretrain]\nfrom = "models/scout"\n[sft]\n[stage.other]\nkind = "sft"\nfrom = "mine"\n'
    assert models_of(tmp_path, text) == {"pretrain": Path("models/scout"), "sft": "pretrain", "other": Path("mine")}
    nodes = load_recipe(recipe(tmp_path, text), STAGES)
    assert {node.parents["data"] for node in nodes.values()} == {Path("corpus")}
    assert models_of(tmp_path, 'data = "corpus"\nmodel = "mine"\n[sft]') == {"sft": Path("mine")}
    # A table wins over a folder of its name.
    Path("pretrain").mkdir()
    assert models_of(tmp_path, LIFE + '[sft]\nfrom = "pretrain"')["sft"] == "pretrain"


def test_a_report_reads_all_stages_above_it_and_may_be_about_one(tmp_path: Path):
    text = LIFE + '[sft]\n[evaluate]\n[stage.report-base]\nkind = "report"\nfrom = "pretrain"\n[report]\n'
    nodes = load_recipe(recipe(tmp_path, text), STAGES)
    stages = ["data", "model", "vision", "pretrain", "sft", "evaluate"]
    assert list(nodes["report-base"].parents.values()) == list(nodes["report"].parents.values()) == stages
    assert (nodes["report-base"].config.stage, nodes["report"].config.stage) == ("pretrain", "")


@pytest.mark.parametrize(("key", "now"), [('preset = "tiny"', "preset"), ("likeness = 0.5", "qk_init_correlation")])
def test_a_setting_of_an_earlier_version_is_refused_with_its_new_place(tmp_path: Path, key: str, now: str):
    name = key.split()[0]
    with pytest.raises(HerdError, match=rf"\[vision\] {name}: this setting is now {now} of \[model\]"):
        load_recipe(recipe(tmp_path, f"[data]\n[vision]\n{key}\n"), STAGES)


@pytest.mark.parametrize(
    ("table", "old", "now"),
    [
        ("[model]\ntemperature = false", "temperature", "temperature_tuning"),
        ("[pretrain]\nbalance_rate = 0.0", "balance_rate", "bias_update_rate"),
        ("[pretrain.optimizer]\nwarmup = 0.1", "optimizer.warmup", "optimizer.warmup_ratio"),
    ],
)
def test_a_renamed_setting_is_refused_with_its_new_name(tmp_path: Path, table: str, old: str, now: str):
    with pytest.raises(HerdError, match=rf" {old}: this setting is now {now}$"):
        load_recipe(recipe(tmp_path, f"[data]\n{table}\n"), STAGES)


def test_a_setting_that_was_removed_is_refused_with_what_to_use(tmp_path: Path):
    text = LIFE + '[evaluate]\nreasons = ["language: it is small"]\n'
    with pytest.raises(HerdError, match=r"\[evaluate\] reasons: this setting was removed, .*`herd bench tiny RUN`"):
        load_recipe(recipe(tmp_path, text), STAGES)


def test_a_renamed_table_is_named_with_the_key_in_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(renamed.RENAMED, (renamed.ANY, "inner"), (renamed.ANY, "core"))
    for values, reported in ({"inner": {"rate": 1}}, "core"), ({"inner": 3}, "core"):
        with pytest.raises(HerdError, match=f"this setting is now {reported}$"):
            refuse_renamed("train", values, where="[train]")
    assert renamed.new_name("train", "inner.rate") == ("train", "core.rate")
    assert renamed.new_name("train", "rate.inner") is None


def test_the_shape_of_a_new_model_is_a_preset_with_changes(tmp_path: Path):
    text = """
    [data]
    [model]
    preset = "tiny-maverick"
    num_experts = 4
    moe_every = 1
    dim = 64
    qk_norm = true
    vision.num_layers = 2
    """
    config = load_recipe(recipe(tmp_path, text), STAGES)["model"].config
    base = preset("tiny-maverick", vocab_size=300)
    shape = config.shape(base)
    assert shape == replace(
        base,
        dim=64,
        qk_norm=True,
        moe=replace(base.moe, num_experts=4, every=1),
        vision=replace(base.vision, num_layers=2),
    )
    assert NewModelConfig(preset="tiny").shape(preset("tiny")) == preset("tiny")
    assert NewModelConfig(text_only=True).shape(preset("tiny")) == replace(preset("tiny"), vision=None)


@pytest.mark.parametrize(
    ("keys", "reported"),
    [
        ('preset = "tinny"', r"\[model\] preset = 'tinny', did you mean 'tiny'"),
        ("num_expert = 4", "did you mean 'num_experts'"),
        ("top_k = 9", r"\[model\]: top_k=9 is not between 1 and num_experts=8"),
        ("num_kv_heads = 3", r"\[model\]: num_heads=4 is not divisible by num_kv_heads=3"),
        ("text_only = true\nvision.dim = 64", r"\[model\]: vision\.dim=64: text_only=True has no vision encoder"),
        ('preset = "tiny-long"\nvision.dim = 64', "vision.dim=64: preset=tiny-long has no vision encoder"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, keys: str, reported: str):
    with pytest.raises(HerdError, match=reported):
        load_recipe(recipe(tmp_path, f"[data]\n[model]\n{keys}\n"), STAGES)


def test_a_table_can_change_every_field_of_a_shape_but_what_the_tokenizer_says():
    """`rope_scaling` and `norm_eps` are left to the presets."""
    ours = {field.name for field in fields(NewModelConfig)} - {"preset", "seed", "qk_init_correlation", "text_only"}
    assert ours - set(MOE) == {field.name for field in fields(ModelConfig)} - {
        "vocab_size", "special", "moe", "rope_scaling", "norm_eps",
    }  # fmt: skip
    assert set(MOE.values()) == {field.name for field in fields(MoEConfig)}
    left = {"rope_theta", "norm_eps"}
    assert {field.name for field in fields(EncoderConfig)} == {field.name for field in fields(VisionConfig)} - left
    assert set(get_args(PresetName)) == set(PRESETS)


def test_the_recipes_of_the_house_fit_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HerdError, match=r"\[stage\.eyes\] data = 'runs/tiny/data': there is no such folder"):
        load_recipe("guard", STAGES)
    for sign in ("data/tokenizer", "vision/config.json"):  # the guard's begins with what the tiny herd's has made
        (tmp_path / "runs/tiny" / sign).parent.mkdir(parents=True)
        (tmp_path / "runs/tiny" / sign).touch()
    for path in recipe_path("tiny").parent.glob("*.toml"):
        assert load_recipe(path.stem, STAGES), path


def test_a_student_learns_from_the_rows_above_it_or_from_a_model_that_is_named(tmp_path: Path):
    life = '[data]\n[model]\n[pretrain]\n[teach]\n[stage.small]\nkind = "model"\n[distill]\nfrom = "small"\n'
    nodes = load_recipe(recipe(tmp_path, life), STAGES)
    assert nodes["teach"].parents == {"model": "pretrain", "data": "data"}
    assert nodes["distill"].parents == {"model": "small", "data": "data", "teacher": "teach"}
    nodes = load_recipe(recipe(tmp_path, life + 'teacher = "pretrain"\n'), STAGES)
    assert nodes["distill"].parents["teacher"] == "pretrain"
    with pytest.raises(HerdError, match=r"reads a teacher folder and no table above it writes one: add \[teach\]"):
        load_recipe(recipe(tmp_path, "[data]\n[model]\n[pretrain]\n[distill]\n"), STAGES)


def test_an_encoder_and_the_drawings_of_a_guard_may_be_those_of_a_stage(tmp_path: Path):
    eyes = '[stage.eyes]\nkind = "vision"\n[stage.seeing]\nkind = "vision"\nfrom = "model"\nencoder = "eyes"\n'
    nodes = load_recipe(recipe(tmp_path, f'[data]\n[model]\n{eyes}[guard]\npictures = "data"\n'), STAGES)
    assert nodes["seeing"].config_in(tmp_path).encoder == str(tmp_path / "eyes")
    assert nodes["guard"].config_in(tmp_path).pictures == str(tmp_path / "data")


def test_the_herd_has_one_pass_of_its_teacher_and_its_students_the_same_settings_with_and_without():
    nodes = load_recipe("herd", STAGES)
    for student in ("scout", "maverick"):
        taught, alone = nodes[f"{student}-distill"], nodes[f"{student}-alone-pretrain"]
        assert taught.parents == {"model": f"{student}-vision", "data": "data", "teacher": "teach"}
        assert alone.parents == {"model": f"{student}-vision", "data": "data"}
        plan = {field.name for field in fields(PretrainConfig)}
        assert all(getattr(taught.config, name) == getattr(alone.config, name) for name in plan)
        rows = nodes["teach"].config
        assert all(getattr(rows, field.name) == getattr(alone.config, field.name) for field in fields(PretrainPlan))
        for one, other in ((f"{student}-midtrain", f"{student}-alone-midtrain"), (student, f"{student}-alone")):
            assert nodes[one].config == nodes[other].config
    assert nodes["teach"].parents["model"] == "behemoth-pretrain"


def test_the_recipe_of_the_page_on_distillation_is_one(tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "distill.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    nodes = load_recipe(recipe(tmp_path, text), STAGES)
    assert nodes["distill"].parents == {"model": "small", "data": "data", "teacher": "teach"}
