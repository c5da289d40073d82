"""From files of the user's to a model that was trained on them, by the commands: an adopted model and a new one."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from dense_llama import dense_folder

import herd
from herd.cli import main
from herd.core.files import read_json
from herd.core.lineage import read_lineage
from herd.data.loading import tables
from herd.data.tokens.shards import TokenShards
from herd.engine.sampler import SamplingParams
from herd.stages import starter
from herd.stages.adopt import AdoptConfig, adopt

pytest.importorskip("transformers")

WORDS = [
    "river",
    "town",
    "music",
    "teacher",
    "winter",
    "garden",
    "market",
    "history",
    "painter",
    "bridge",
    "island",
    "school",
    "mountain",
    "science",
    "letter",
    "window",
    "summer",
    "train",
    "forest",
    "harbour",
    "student",
    "kitchen",
    "village",
    "church",
    "soldier",
    "doctor",
    "weather",
    "morning",
    "evening",
    "station",
    "paper",
    "story",
    "friend",
    "water",
    "mother",
    "father",
    "children",
    "paint",
    "bread",
    "table",
    "corner",
    "street",
    "voice",
    "hand",
    "light",
    "wind",
    "rain",
    "snow",
    "stone",
]
SMALL = ["--num-tokens", "600", "--batch-tokens", "300", "--context", "300"]


def page(place: random.Random) -> str:
    """A text that passes the filters: no line and no run of words comes again."""
    said = "The {} of the {} was near the {}, and a {} that {} had seen with the {} came to {} by the {}."
    return "\n".join(said.format(*place.sample(WORDS, 8)) for _ in range(10))


def chat(number: int) -> dict[str, Any]:
    words = random.Random(f"chat {number}").sample(WORDS, 3)
    said = [f"Where is the {words[0]}?", f"By the {words[1]}.", "And then?", f"Then comes the {words[2]}."]
    roles = ["user", "assistant"] * 2
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of texts and a file of chats, and an adopted model beside them."""
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    for number in range(24):
        Path(f"corpus/{number}.txt").write_text(page(random.Random(number)))
    Path("chats.jsonl").write_text("".join(json.dumps(chat(number)) + "\n" for number in range(30)))
    dense_folder(tmp_path / "dense", num_hidden_layers=2, max_position_embeddings=512)
    adopt(AdoptConfig(), tmp_path / "dense", tmp_path / "home")
    return tmp_path


@pytest.mark.slow
def test_text_and_then_chats_go_into_an_adopted_model_with_its_own_tokenizer(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "home", "--text", "corpus", "--out", "read", *SMALL]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "text  .txt     24" in printed
    assert "left out 270 tokens of pictures" not in printed  # it reads none, as the line about the model has it
    shards = TokenShards(mine / "read-data" / "tokens")
    assert shards.manifest["vocab_size"] == 280
    assert main(["sft", "read", "--chats", "chats.jsonl", "--out", "mine", *SMALL]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "max_epochs is 3" in printed
    assert "replay_share=0.25 counts as 0" in printed
    assert not tables.has(mine / "mine-data", "text")
    lineage = read_lineage(mine / "mine")
    assert lineage["parents"]["data"]["path"] == "mine-data"
    data = read_lineage(mine / "mine-data")
    assert data["parents"]["source chats"]["path"] == "chats.jsonl"
    assert data["card"]["sources"][0]["rows"]["train"] + data["card"]["sources"][0]["rows"]["heldout"] == 30
    model = herd.load(mine / "mine")
    assert model.tokenizer.template is not None
    assert model.generate("the cat", SamplingParams(max_tokens=4, seed=0)).text is not None


def test_the_data_is_built_once_and_again_when_a_file_has_changed(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sft", "home", "--chats", "chats.jsonl", "--text", "corpus", "--out", "mine", *SMALL]
    import herd.stages.sft as stage

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(stage, "train_language", killed)
    with pytest.raises(Killed):
        main(command)
    assert "data begins" in capsys.readouterr().out
    with pytest.raises(Killed):
        main(command)
    assert "reused mine-data: nothing has changed" in capsys.readouterr().out
    with Path("chats.jsonl").open("a") as file:
        file.write(json.dumps(chat(99)) + "\n")
    with pytest.raises(Killed):
        main(command)
    assert "data begins again: source chats" in capsys.readouterr().out
    assert len(tables.read(mine / "mine-data", "chats")) == 31
    assert len(tables.read(mine / "mine-data.1", "chats")) == 30
    assert read_json(mine / "mine-data" / "sources.json").keys() == {"corpus", "chats"}


def test_what_is_missing_or_given_twice_is_one_line(mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for args, expected in (
        (["sft", "home", "--out", "o"], "needs data: give --data FOLDER, or --chats"),
        (["sft", "home", "--data", "d", "--chats", "chats.jsonl", "--out", "o"], "--data is given, and --chats too"),
        (["sft", "home", "--chats", "none.jsonl", "--out", "o"], "none.jsonl: there is no file like this"),
        (["sft", "home", "--chats", "corpus", "--out", "o"], "chats are rows, this is a document"),
        (["pretrain", "home", "--text", "chats.jsonl", "--out", "o"], "chats.jsonl row 1: no text in the columns"),
        (["data", "build", "--packages", "False", "--out", "o"], "there is nothing to make data of"),
    ):
        assert main(args) in {1, 2}
        [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("herd: ")]
        assert expected in line


@pytest.mark.slow
def test_one_command_makes_a_new_model_of_a_folder_and_evaluates_it(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("small.toml").write_text(
        "[data]\nvocab_size = 400\n[model]\npreset = 'tiny'\ntext_only = true\nnum_layers = 2\ndim = 32\n"
        "[pretrain]\nnum_tokens = 1500\nbatch_tokens = 500\ncontext = 100\n"
        "[sft]\nnum_tokens = 1500\nbatch_tokens = 500\ncontext = 300\n[evaluate]\nsample_tokens = 8\n"
    )
    assert main(["run", "small.toml", "--from", "corpus", "chats.jsonl", "--out", "run"]) == 0, capsys.readouterr().err
    assert read_lineage(mine / "run" / "data")["card"]["documents"].keys() == {"en"}
    found = read_json(mine / "run" / "evaluate" / "results.json")
    assert found["bits_per_byte"] and found["samples"]["chats"]
    assert main(["convert", "run/sft", "mine.gguf", "--text-only"]) == 0
    assert Path("mine.gguf").stat().st_size > 10_000


def test_the_starter_model_is_meant_by_its_name(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mine / "cache" / "starter"
    monkeypatch.setattr(starter, "starter_folder", lambda: folder)

    def bring(to: Path) -> None:
        to.parent.mkdir(parents=True)
        (mine / "home").rename(to)

    monkeypatch.setattr(starter, "bring", bring)
    assert main(["sft", "starter", "--chats", "chats.jsonl", "--out", "mine", *SMALL]) == 0, capsys.readouterr().err
    assert read_lineage(mine / "mine")["parents"]["model"]["path"] == str(folder)
    assert read_lineage(mine / "mine-data")["config"]["tokenizer"] == str(folder)
