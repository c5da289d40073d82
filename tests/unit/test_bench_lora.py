"""`herd bench lora` with tiny trainings: its figures beside slow references, and that what is done is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import herd
from herd.bench import lora as bench
from herd.bench.lora import BEFORE, CHATS, FULL, TEXT, rows_of
from herd.config import EvaluateConfig
from herd.data.loading import tables
from herd.data.tokens.chat import render_messages
from herd.errors import HerdError
from herd.evaluate.chat_loss import chat_loss
from herd.evaluate.evaluation import Evaluation
from herd.evaluate.questions import has_media

RUN: dict[str, Any] = {"rank": 2, "rates": (0.01,), "seeds": 1, "num_tokens": 800, "as_json": True}


def test_the_loss_of_held_out_chats_is_that_of_one_forward_for_each(tiny_folder: Path, tiny_data: Path) -> None:
    with Evaluation(EvaluateConfig(chats=1000), tiny_folder, tiny_data) as run:
        found = chat_loss(run)["nats"]
    model, losses, kinds = herd.load(tiny_folder), list[torch.Tensor](), list[str]()
    for row in tables.read(tiny_data, "chats"):
        messages = json.loads(row["messages"])
        if row["split"] == "train" or has_media(messages):
            continue
        kinds.append(row["kind"])
        rendered = render_messages(model.tokenizer, model.processor, messages, add_generation_prompt=False)
        logp_NV = torch.log_softmax(model.logits(rendered.ids).float(), -1)
        losses += [-logp_NV[at - 1, token] for at, token in enumerate(rendered.ids) if rendered.learnt[at]]
    assert len(set(kinds)) > 1
    assert found == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)


def test_runs_are_trained_once_and_read_after(
    tiny_folder: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(bench, "ASKED", EvaluateConfig(heldout_bytes=200, chats=1, answer_tokens=2))
    bench.lora(tiny_folder, tiny_data, tmp_path, **RUN)
    first = json.loads(capsys.readouterr().out)["rows"]
    text = {row["peer_name"]: row for row in first if TEXT in row["case"]}
    assert len({text[FULL]["ours"], text[FULL]["peer"], text[BEFORE]["peer"]}) == 3
    (tmp_path / "LoRA-2-at-0.01-800-0.json").unlink()  # killed before it was measured
    monkeypatch.setattr(bench, "sft", None)
    measured: list[Path] = []
    monkeypatch.setattr(
        bench, "Evaluation", lambda cfg, model, data: measured.append(model) or Evaluation(cfg, model, data)
    )
    bench.lora(tiny_folder, tiny_data, tmp_path, **RUN)
    assert json.loads(capsys.readouterr().out)["rows"] == first
    assert measured == [tmp_path / "LoRA-2-at-0.01-800-0"]
    (tmp_path / "LoRA-2-at-0.01-800-0").rename(tmp_path / "LoRA-4-at-0.01-800-0")
    with pytest.raises(HerdError, match=r"was trained with other settings \(lora\.rank 2 → 4\): give another --out"):
        bench.lora(tiny_folder, tiny_data, tmp_path, **{**RUN, "rank": 4})


def test_less_loss_and_more_right_answers_are_better_by_the_mean_over_seeds() -> None:
    before = {TEXT: 1.0, CHATS: 6.0, "flag questions": 0.1}
    whole = [{TEXT: 2.0, CHATS: 3.0, "flag questions": 0.2}, {TEXT: 4.0, CHATS: 3.0, "flag questions": 0.2}]
    adapted = [{TEXT: 1.0, CHATS: 4.0, "flag questions": 0.5}, {TEXT: 2.0, CHATS: 4.0, "flag questions": 0.3}]
    ratios = {(row.case, row.peer_name): row.ratio for row in rows_of(before, {FULL: whole, "LoRA": adapted})}
    assert ratios == pytest.approx(
        {
            (f"LoRA: {TEXT}", FULL): 2.0, (f"LoRA: {TEXT}", BEFORE): 2 / 3,
            (f"LoRA: {TEXT}, seed 0", FULL): 2.0, (f"LoRA: {TEXT}, seed 1", FULL): 2.0,
            (f"LoRA: {CHATS}", FULL): 0.75, (f"LoRA: {CHATS}", BEFORE): 1.5,
            (f"LoRA: {CHATS}, seed 0", FULL): 0.75, (f"LoRA: {CHATS}, seed 1", FULL): 0.75,
            ("LoRA: flag questions", FULL): 2.0, ("LoRA: flag questions", BEFORE): 4.0,
        }
    )  # fmt: skip
