"""`herd run` of a recipe with branches, whole: text alone, a stage twice, two evaluations, and what runs again."""

import json
from pathlib import Path

import pytest
from recipe_world import run_here

from herd.cli import main
from herd.core.lineage import read_lineage

TRAIN = "num_tokens = 1000\nbatch_tokens = 500\ncontext = 64\n"
EVALUATE = "heldout_bytes = 200\nchats = 1\nanswer_tokens = 2\nsample_tokens = 2\n"
TABLES = f"""
[model]
text_only = true
dim = 32
num_layers = 2
nope_every = 2
num_heads = 2
num_kv_heads = 1
head_dim = 16
expert_ffn_dim = 32

[pretrain]
{TRAIN}
[sft]
{TRAIN}
[stage.evaluate-base]
kind = "evaluate"
from = "pretrain"
{EVALUATE}
[stage.sft-b]
kind = "sft"
from = "pretrain"
seed = 1
{TRAIN}
[evaluate]
{EVALUATE}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; stages run in this process, for speed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("herd.commands.run.run_apart", run_here)
    return tmp_path


def run(line: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `herd run` said of each stage."""
    assert main(["run", *line.split()]) == 0
    words = [said.split() for said in capsys.readouterr().out.splitlines() if " s)" in said]
    return {name: what for name, what, *_ in words}


def test_a_graph_of_stages_runs_whole_and_only_what_changed_runs_again(
    here: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.toml").write_text(f'data = "{tiny_data}"\n{TABLES}')
    stages = ["model", "pretrain", "sft", "evaluate-base", "sft-b", "evaluate", "report"]
    assert run("own.toml --model.num-experts 2", capsys) == dict.fromkeys(stages, "done")
    made = {name: read_lineage(here / "runs/own" / name) for name in stages}
    for name, parent in {
        "pretrain": "model", "sft": "pretrain", "sft-b": "pretrain", "evaluate-base": "pretrain", "evaluate": "sft-b",
    }.items():  # fmt: skip
        assert made[name]["parents"]["model"]["hash"] == made[parent]["hash"], name
        assert made[name]["parents"]["data"] == {"path": str(tiny_data), "hash": read_lineage(tiny_data)["hash"]}
    assert (made["sft"]["stage"], made["sft-b"]["stage"]) == ("sft", "sft")
    assert made["sft"]["hash"] != made["sft-b"]["hash"]
    shape = json.loads(Path("runs/own/model/config.json").read_text())
    assert (shape["num_local_experts"], shape["hidden_size"], "vision_config" in shape) == (2, 32, False)
    page = Path("runs/own/report/report.html").read_text()
    assert "<code>evaluate-base</code> of pretrain" in page and "<code>evaluate</code> of sft-b" in page

    assert run("own.toml --model.num-experts 2", capsys) == dict.fromkeys(stages, "reused")
    again = run("own.toml --model.num-experts 2 --sft-b.seed 2", capsys)
    assert [name for name, what in again.items() if what == "done"] == ["sft-b", "evaluate", "report"]
    assert read_lineage(here / "runs/own/sft-b.1")["config"]["seed"] == 1

    # Another run begins where this one has a model.
    Path("more.toml").write_text(f'data = "{tiny_data}"\n[sft]\nfrom = "runs/own/pretrain"\nseed = 3\n{TRAIN}')
    assert run("more.toml", capsys) == {"sft": "done", "report": "done"}
    assert read_lineage(here / "runs/more/sft")["parents"]["model"]["hash"] == made["pretrain"]["hash"]

    # There is no encoder to train in a model of text alone.
    assert main(["vision", "runs/own/model", "--data", str(tiny_data), "--out", "out"]) == 1
    assert "herd: runs/own/model has no vision encoder: leave the vision stage out" in capsys.readouterr().err
