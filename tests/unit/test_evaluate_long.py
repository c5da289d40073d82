"""The suite for long texts: what it writes, and that its controls fail where they must."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from test_engine_reader import CHUNK, model_of, shape, tokens

from herd.commands.stages import STAGES
from herd.config import EvaluateConfig, LongConfig, MoEConfig, RopeScaling, preset
from herd.core.files import write_json
from herd.data.packages import grammar, novel, planted
from herd.data.packages.novel import Chapter
from herd.data.packages.planted import Keys
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.load import load
from herd.errors import HerdError
from herd.evaluate import long, long_questions
from herd.evaluate.harness import evaluate
from herd.evaluate.long_losses import loss_by_position
from herd.evaluate.long_questions import disable_temperature, heldout_keys
from herd.evaluate.report import report
from herd.evaluate.training_length import training_length
from herd.model.formats import huggingface
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.stages.recipe import Node
from herd.stages.runner import run_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "long"
    out.mkdir()
    tokenizer = Tokenizer.load(tiny_data / "tokenizer")
    config = preset("tiny-long", vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
    narrow = replace(config, dim=32, num_heads=2, num_kv_heads=1, head_dim=16, moe=MoEConfig(num_experts=2, ffn_dim=32))
    model = Transformer(replace(narrow, chunk_size=128))
    initialise(model, torch.Generator().manual_seed(0))
    huggingface.save(model, out, dtype=torch.float32)
    tokenizer.save(out)
    write_json(out / "herd.json", {"stage": "random", "hash": "0"})
    return out


def chapters() -> list[Chapter]:
    """Thirty short chapters, each with sentences of its own."""
    return [
        Chapter(
            number=n, title=f"The tale of number {n}",
            text=f"CHAPTER {n}. The tale of number {n}.\n\nIt began. In the year {1800 + n} there lived a "
            f"man who had {n} dogs and one cat, and {n + 50} birds sang in his old garden every morning.\n\n",
        )
        for n in range(1, 31)
    ]  # fmt: skip


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> EvaluateConfig:
    """Two lengths, two depths, two kinds of questions."""
    text = "The cat sat on the mat. A dog came in and sat beside it.\n" * 400
    monkeypatch.setattr(long, "haystack", lambda _, tokenizer, length: np.array(tokenizer.encode(text))[:length])
    for module in (long, long_questions):
        monkeypatch.setattr(module, "DEPTHS", (0.25, 0.75))
    monkeypatch.setattr(long, "TASKS", {"votes": planted.aggregation, long.TRANSLATION: grammar.translation})
    monkeypatch.setattr(novel, "chapters", chapters)
    return EvaluateConfig(suite="long", long=LongConfig(lengths=(1024, 2048), trained=512, seeds=1, asks=2))


def test_the_suite_writes_shares_for_each_length_and_a_map(
    folder: Path, tiny_data: Path, tmp_path: Path, short: EvaluateConfig
) -> None:
    out = evaluate(short, folder, tiny_data, tmp_path / "out")
    results = json.loads((out / "results.json").read_text())
    assert [(row["length"], row["times"]) for row in results["rows"]] == [(1024, 2), (2048, 4)]
    assert results["trained"] == {"tokens": 512, "from": "settings"}
    assert all(
        0 <= row[name] <= 1 for row in results["rows"] for name in ("single", "votes", "single, temperature off")
    )
    assert all(row["single, needle removed"] == 0 for row in results["rows"])
    assert results["loss_by_position"][-1]["to"] == 512
    assert all(0 <= row["translation, grammar removed"] <= 1 for row in results["rows"])
    assert [row["after"] for row in results["loss_after"]] == [0, 1024, 2048]
    assert {row["kind"] for row in results["book"]["rows"]} >= {"title by number", "how a sentence goes on"}
    page = (report(out) / "report.html").read_text()
    assert "Long texts" in page and "title by number" in page and "data:image/svg+xml;base64,PHN2" in page
    assert len(ElementTree.parse(out / "recall.svg").findall(".//{*}rect")) == 1 + 2 * 2


def test_a_killed_suite_goes_on_with_the_next_kind_and_a_finished_one_is_reused(
    folder: Path,
    tiny_data: Path,
    tmp_path: Path,
    short: EvaluateConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = {"evaluate": Node(kind=STAGES["evaluate"], config=short, parents={"model": "model", "data": "data"})}
    (tmp_path / "model").symlink_to(folder)
    (tmp_path / "data").symlink_to(tiny_data)
    ask_all, asked = long_questions.ask_all, []

    def ask(hay: object, name: str, maker: object, keys: object, length: int, seeds: int, **options: bool) -> object:
        if len(asked) == 7:
            asked.append("killed")
            raise KeyboardInterrupt
        asked.append(f"{name} {length}")
        return ask_all(hay, name, maker, keys, length, seeds, **options)

    monkeypatch.setattr(long_questions, "ask_all", ask)
    with pytest.raises(KeyboardInterrupt, match="what was finished is in "):
        run_recipe(nodes, tmp_path)
    run_recipe(nodes, tmp_path)
    kinds = ["single", "votes", long.TRANSLATION, "single", long.TRANSLATION, "single"]
    every = [f"{kind} {length}" for length in (1024, 2048) for kind in kinds]
    assert asked == [*every[:7], "killed", *every[7:]]
    names = {path.name for path in (tmp_path / "evaluate").iterdir()}
    assert names == {"herd.json", "recall.svg", "results.json"}
    whole = evaluate(short, folder, tiny_data, tmp_path / "whole")
    results = [json.loads((out / "results.json").read_text()) for out in (whole, tmp_path / "evaluate")]
    assert results[0] == results[1]
    capsys.readouterr()
    run_recipe(nodes, tmp_path)
    assert "evaluate  reused" in capsys.readouterr().out


def test_without_temperature_keys_and_values_stay_and_queries_do_not() -> None:
    model = model_of(shape(temperature_scale=3.0))
    other = disable_temperature(model)
    ids = tokens(3 * CHUNK)
    place = {"positions_N": torch.arange(len(ids)), "starts_S": torch.tensor([0, len(ids)], dtype=torch.int32)}
    with torch.inference_mode():
        tempered, plain = (one.transformer(ids, **place) for one in (model, other))
    warm = 15  # positions below the floor have a temperature of 1
    assert torch.allclose(tempered[:warm], plain[:warm], atol=1e-5)
    assert not torch.allclose(tempered[-1], plain[-1], atol=1e-3)
    names = [name for name, _ in model.transformer.named_parameters()]
    assert all(torch.equal(model.transformer.get_parameter(n), other.transformer.get_parameter(n)) for n in names)


def test_losses_by_position_average_to_the_loss_of_the_whole() -> None:
    model = model_of(shape())
    ids = tokens(300).numpy()
    rows = loss_by_position(model, ids, 300)
    logits = model.logits(ids.tolist())[:-1]
    whole = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids)[1:])
    sizes = [min(row["to"], 299) - row["from"] for row in rows]
    mean = sum(size * row["loss"] for size, row in zip(sizes, rows, strict=True)) / 299
    assert mean == pytest.approx(float(whole), abs=1e-3)


def test_a_model_without_a_temperature_has_no_control_with_it_off(
    folder: Path, tiny_data: Path, tmp_path: Path, short: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long, "TASKS", {})
    monkeypatch.setattr(long, "load", lambda path, **_: disable_temperature(load(path)))
    one = replace(short, long=replace(short.long, lengths=(1024,), trained=None))
    results = json.loads((evaluate(one, folder, tiny_data, tmp_path / "out") / "results.json").read_text())
    [row] = results["rows"]
    assert "single, needle removed" in row and "single, temperature off" not in row
    assert results["left_out"] == {"single, temperature off": "the model scales no queries"}
    assert results["trained"] == {"tokens": 128, "from": "the chunk of the local layers"} and row["times"] == 8


def test_without_english_training_text_keys_are_words_of_the_long_text(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    ids = np.array(model.tokenizer.encode("the river under the bridge in winter " * 3))
    assert set(heldout_keys(tmp_path, model, ids).words) == {"river", "under", "bridge", "winter"}


def stage_folder(folder: Path, stage: str, parent: Path | None = None, **config: object) -> Path:
    """A model folder with a lineage and nothing else."""
    folder.mkdir(parents=True)
    parents = {"model": {"path": str(parent), "hash": parent.name}} if parent else {}
    write_json(folder / "herd.json", {"stage": stage, "hash": folder.name, "parents": parents, "config": config})
    return folder


def test_the_training_length_is_the_longest_document_of_all_stages(tmp_path: Path) -> None:
    config = preset("tiny-long")
    new = stage_folder(tmp_path / "model", "model")
    base = stage_folder(tmp_path / "pretrain", "pretrain", new, context=512)
    middle = stage_folder(tmp_path / "midtrain", "midtrain", base, context=512, lengths=[256, 8192, 1024])
    tuned = stage_folder(tmp_path / "sft", "sft", middle, context=640)
    reported = stage_folder(tmp_path / "int8", "quantize", tuned)
    assert training_length(base, config) == (512, "the settings of pretrain")
    assert training_length(tuned, config) == training_length(reported, config) == (8192, "the settings of midtrain")
    # A run that was moved has its stages side by side; of a folder with the same name and another hash nothing is read.
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("elsewhere"))
    for name in ("model", "pretrain", "midtrain"):
        shutil.rmtree(tmp_path / name)
    assert training_length(moved / "sft", config) == (8192, "the settings of midtrain")
    write_json(moved / "midtrain" / "herd.json", {"stage": "midtrain", "hash": "another"})
    with pytest.raises(HerdError, match=r"sft was made from .*midtrain, which is not there.* give --long\.trained"):
        training_length(moved / "sft", config)


def test_the_training_length_of_a_foreign_folder_is_what_its_configuration_says(tmp_path: Path) -> None:
    config = replace(preset("tiny-long"), chunk_size=256, max_positions=4096)
    assert training_length(tmp_path, config) == (256, "the chunk of the local layers")
    whole = replace(config, chunk_size=4096)
    assert training_length(tmp_path, whole) == (4096, "the positions that the model claims")
    scaling = RopeScaling(factor=16, low_freq_factor=1, high_freq_factor=1, original_max_positions=2048)
    assert training_length(tmp_path, replace(whole, rope_scaling=scaling))[0] == 2048
    (tmp_path / "foreign").mkdir()
    tuned = stage_folder(tmp_path / "sft", "sft", tmp_path / "foreign", context=512)
    assert training_length(tuned, whole) == (4096, "the positions that the model claims")
    assert training_length(tuned, config) == (512, "the settings of sft")


def test_every_task_can_be_drawn() -> None:
    keys = Keys(["river", "town", "music", "winter"], evaluation=True)
    for name, maker in long.TASKS.items():
        quiz = maker(np.random.default_rng(0), keys)
        assert quiz.facts and quiz.question.startswith("\n") and quiz.answer.startswith(" "), name
