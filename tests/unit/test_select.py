"""herd.stages.select: how hard chats are, which are kept, and that fine-tuning takes those alone."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from herd.cli import main
from herd.config import SelectConfig, SftConfig
from herd.core.files import write_json
from herd.data.loading import selection, tables
from herd.data.loading.chat_media import ChatMedia
from herd.data.loading.sft_batches import SftBatches
from herd.data.media.image import ImageProcessor
from herd.data.tasks.chats import ChatTask
from herd.data.tokens.chat import render_messages
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.load import load
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.stages import select as stage
from herd.stages import select_scores as scores
from herd.stages.select import select


def chat(number: int, kind: str = "chat", *, answer: str = "", language: str = "en") -> dict[str, Any]:
    said = [
        {"role": "user", "content": f"the cat {number}?"},
        {"role": "assistant", "content": answer or "the mat sat"},
    ]
    return {
        "id": f"c{number}", "split": "train", "kind": kind, "language": language, "messages": json.dumps(said),
        "answer": answer, "verifier": "", "source": "mine", "tools": "",
    }  # fmt: skip


def write_chats(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    tables.write(folder / "chats.parquet", rows, tables.CHATS)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six chats with an answer to compare with, four without."""
    rows = [chat(i, "task", answer="on") for i in range(6)] + [chat(i, language="und") for i in range(6, 10)]
    return write_chats(tmp_path / "data", rows)


CONFIG = SelectConfig(num_answers=3, max_tokens=4)


def scorer(folder: Path, data: Path, **changes: Any) -> scores.Scorer:
    model = load(folder, dtype=torch.float32)
    return scores.Scorer(model=model, media=ChatMedia.read(data), config=replace(CONFIG, **changes))


def test_losses_are_those_of_two_plain_forwards(tiny_folder: Path, data: Path):
    made = scorer(tiny_folder, data)
    examples = scores.read_examples(data)
    for example, scored in zip(examples[4:8], scores.score_losses(made, examples[4:8]), strict=True):
        model = made.model
        whole = render_messages(model.tokenizer, model.processor, example.chat.messages, add_generation_prompt=False)
        answer = [token for token, learnt in zip(whole.ids, whole.learnt, strict=True) if learnt]
        alone = [model.config.special.bos, *answer]

        def nats(ids: list[int], model: Any = model, count: int = len(answer)) -> torch.Tensor:
            logp_NV = torch.log_softmax(model.logits(ids).float(), -1)
            return -logp_NV[:-1].gather(1, torch.tensor(ids[1:])[:, None])[-count:, 0]

        assert whole.learnt[-len(answer) :] == [True] * len(answer)
        assert scored["given"] == pytest.approx(nats(whole.ids).tolist(), abs=2e-3)
        assert scored["alone"] == pytest.approx(nats(alone).tolist(), abs=2e-3)


def test_each_turn_of_a_conversation_is_scored_as_an_answer():
    assert scores.runs_of([False, True, True, False, True]) == [(1, 3), (4, 5)]
    assert scores.runs_of([False]) == []


def test_passes_are_the_answers_of_the_engine_that_the_task_calls_right(tiny_folder: Path, data: Path):
    made = scorer(tiny_folder, data, num_answers=6, max_tokens=2)
    examples = scores.read_examples(data)[:3]
    engine = made.model.engine(max_num_seqs=8)
    params = SamplingParams(temperature=1.0, max_tokens=2)
    said = []
    for one in examples:
        prompt = made.model.render(one.chat.question)
        seed = scores.seed_of(0, "select", one.chat.id)
        said.append([output.text for output in engine.submit(prompt, params, seed=seed, n=6).result()])
    # Each is asked for what it says first.
    known = [
        replace(one, chat=replace(one.chat, answer=texts[0] or "silence"))
        for one, texts in zip(examples, said, strict=True)
    ]
    task = ChatTask([one.chat for one in known])
    found = scores.score_passes(made, engine, task, known)
    engine.close()
    right = [sum(task.grade(one.chat.question, t).right for t in texts) for one, texts in zip(known, said, strict=True)]
    assert [one["passes"] for one in found] == right
    assert any(right)


def test_a_judge_is_asked_in_one_message_and_its_grades_are_weighted(tiny_folder: Path, data: Path):
    made = scorer(tiny_folder, data)
    [example] = scores.read_examples(data)[9:]
    [scored] = scores.score_grades(made, [example])
    text = f"{scores.JUDGE_BEFORE}user: the cat 9?\n{scores.JUDGE_BETWEEN}the mat sat{scores.JUDGE_AFTER}"
    parts = [
        scores.JUDGE_BEFORE,
        "user: ",
        "the cat 9?",
        "\n",
        f"{scores.JUDGE_BETWEEN}the mat sat{scores.JUDGE_AFTER}",
    ]
    assert "".join(parts) == text
    content = [{"type": "text", "text": part} for part in parts]
    logits_V = made.model.logits(made.model.render([{"role": "user", "content": content}]).token_ids)[-1].float()
    ids = [made.model.tokenizer.encode(grade)[0] for grade in scores.GRADES]
    assert scored["grades"] == pytest.approx(torch.softmax(logits_V[ids], -1).tolist(), abs=1e-4)


def test_a_killed_run_goes_on_and_writes_the_same_table(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stage, "CHUNK", 2)
    config = replace(CONFIG, by=(str(tiny_folder), str(tiny_folder)))
    monkeypatch.setattr(scores.Scorer, "context", 4000)
    rows = [row for row in tables.read(data, "chats") if row["kind"] == "chat"]  # by log-probability: no draws
    write_chats(data, rows)
    whole = selection.read_selection(select(config, data, tmp_path / "whole"))
    calls: list[int] = []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # between the files of the second model
            raise KeyboardInterrupt
        return scores.score_losses(*args)

    monkeypatch.setattr(stage, "score_losses", dying)
    with pytest.raises(KeyboardInterrupt):
        select(config, data, tmp_path / "cut")
    done = len(calls) - 1
    select(config, data, tmp_path / "cut")
    assert len(calls) == 1 + 2 * math.ceil(len(rows) / 2)  # none again but the one that died
    assert done == 3
    assert selection.read_selection(tmp_path / "cut") == whole
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {"selection.parquet", "herd.json"}


def test_what_the_teacher_never_passes_is_set_apart(tiny_folder: Path, data: Path, tmp_path: Path):
    config = replace(CONFIG, by=(str(tiny_folder),), teacher=str(tiny_folder), keep=1.0)
    rows = selection.read_selection(select(config, data, tmp_path / "out"))
    apart = [row for row in rows if row["why"] == selection.NOT_LEARNABLE]
    assert apart == [row for row in rows if row["teacher_passes"] == 0]
    assert apart
    assert not any(row["kept"] for row in apart)
    assert Counter(row["score"] for row in rows) == {selection.PASS_RATE: 6, selection.LOG_PROBABILITY: 4}
    lineage = json.loads((tmp_path / "out" / "herd.json").read_text())
    assert lineage["selection"]["not_learnable"] == len(apart)
    assert set(lineage["parents"]) == {"data", "by 1", "teacher"}


@pytest.mark.parametrize(("given", "why"), [(1.9, ""), (2.0, ""), (2.1, selection.MISALIGNED)])
def test_a_chat_whose_prompt_makes_the_answer_less_likely_is_set_apart(given: float, why: str, data: Path):
    example = scores.read_examples(data)[9]
    found = {example.number: {"by 1": {"given": [given, 2.0], "alone": [2.0, 2.0]}}}
    row = stage.row_of(example, found, replace(CONFIG, by=("a",)))
    assert row["why"] == why
    rows = selection.select_hardest([row | {"number": 0}, row | {"number": 1, "difficulty": 0.1, "why": ""}], 0.5, 0)
    assert [one["kept"] for one in rows] == [not why, bool(why)]
    facts = selection.summary(rows)
    assert facts["misaligned"] == bool(why)
    assert (f"1 are {selection.MISALIGNED}" in stage.report(facts)) == bool(why)


def test_fine_tuning_takes_the_kept_chats_alone(tiny_folder: Path, data: Path, tmp_path: Path):
    select(replace(CONFIG, by=(str(tiny_folder),)), data, tmp_path / "out")
    kept = {row["number"] for row in selection.read_selection(tmp_path / "out") if row["kept"]}
    config = SftConfig(selection=str(tmp_path / "out"), replay_share=0.0, num_tokens=2000)
    batches = SftBatches(data, config, Tokenizer.load(tiny_folder), ImageProcessor(None))
    assert {batches.chats[index].number for index in batches.order} == kept
    assert len(kept) == 5
    assert batches.left_out == {"chats that the selection does not keep": 5}


def cut_off(folder: Path) -> None:
    path = folder / selection.FILE
    path.write_bytes(path.read_bytes()[:-40])


def of_other_data(folder: Path) -> None:
    write_json(folder / "herd.json", {"parents": {"data": {"hash": "0123456789abcdef"}}})


def empty(folder: Path) -> None:
    (folder / selection.FILE).unlink()


@pytest.mark.parametrize(
    ("spoil", "reported"),
    [
        (cut_off, "is damaged"),
        (of_other_data, "was selected from other data (0123456789ab) than"),
        (empty, "is no selection: it has no selection.parquet"),
    ],
)
def test_a_wrong_selection_is_refused_in_one_line(
    spoil: Any, reported: str, tiny_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    select(replace(CONFIG, by=(str(tiny_folder),)), data, tmp_path / "sel")
    spoil(tmp_path / "sel")
    capsys.readouterr()
    (data / "tokenizer").mkdir()
    folders = ["--data", str(data), "--selection", str(tmp_path / "sel"), "--out", str(tmp_path / "o")]
    code = main(["sft", str(tiny_folder), "--num-tokens", "999", *folders])
    err = capsys.readouterr().err
    assert code == 1
    assert reported in err
    assert len(err.strip().splitlines()) == 1


def test_the_command_refuses_what_it_cannot_score_with(
    tiny_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def message_of(*args: str) -> str:
        assert main(["select", str(data), "--out", str(tmp_path / "o"), *args]) == 1
        return capsys.readouterr().err.strip()

    assert message_of() == (
        "herd: by is empty: give two or three earlier checkpoints, --by runs/mine/sft, or a --judge"
    )
    assert "none is not there" in message_of("--by", "none")
    assert "keep=0.0 must be above 0" in message_of("--by", str(tiny_folder), "--keep", "0")
    assert len(message_of("--by", str(data)).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "answer", "reported"),
    [
        ({"teacher": True}, "", "teacher (.*) has nothing to score, as no chat has a right answer: leave it out"),
        ({"judge": True}, "on", "judge (.*) has nothing to score, as no chat lacks a right answer: leave it out"),
        ({"judge": True}, "", "by 1 (.*) has nothing to score, as no chat has a right answer: leave it out"),
        ({"by": (), "judge": True, "teacher": True}, "on", "by is empty"),
    ],
)
def test_a_model_that_has_nothing_to_score_is_refused(
    changes: dict[str, Any], answer: str, reported: str, tmp_path: Path
):
    write_chats(tmp_path / "data", [chat(number, answer=answer) for number in range(3)])
    folders = {name: str(tmp_path) if value is True else value for name, value in changes.items()}
    with pytest.raises(HerdError, match=reported):
        select(replace(CONFIG, **{"by": (str(tmp_path),), **folders}), tmp_path / "data", tmp_path / "out")


def test_a_folder_without_training_chats_is_refused(tmp_path: Path):
    write_chats(tmp_path / "data", [chat(1) | {"split": "heldout"}])
    with pytest.raises(HerdError, match="has no chats to train on"):
        select(replace(CONFIG, by=(str(tmp_path),)), tmp_path / "data", tmp_path / "out")
