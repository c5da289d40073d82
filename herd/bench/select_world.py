"""The data and the models of `herd bench select`: digits to copy, reverse and sort, with wrong labels planted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from herd.config import CheckpointConfig, LossSpikesConfig, MoEConfig, SftConfig, preset
from herd.core.files import folder_hash, write_json
from herd.core.lineage import hash_of
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.loading.selection import FILE, SELECTION
from herd.data.tasks.digits import DigitsTask, solve
from herd.data.tokens.tokenizer import Tokenizer, train_tokenizer
from herd.model.formats import huggingface
from herd.model.init import first_weights
from herd.stages.sft import sft

OPERATIONS = ("copy", "reverse", "sort")
LENGTHS = (3, 4, 5, 6, 7)
DIM, LAYERS, VOCABULARY = 128, 3, 310
EARLIER_TOKENS, STEP_TOKENS, TEACHER_TOKENS = 160_000, 80_000, 300_000
WRONG, WRONG_SHARE = "wrong label", 0.05
PARTS = {"heldout": 40, "data": 80, "base-data": 100, "teacher-data": 250}
"""Questions of each operation and number of digits; no question is in two parts."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its true difficulty."""

    text: str
    operation: str
    length: int


@dataclass(frozen=True, kw_only=True)
class World:
    """The folders of one seed."""

    seed: int
    folder: Path
    heldout: list[Question]
    data: Path
    checkpoints: list[Path]
    """Of one run, the earliest first; arms begin with the last."""
    teacher: Path


def questions(seed: int, parts: dict[str, int]) -> dict[str, list[Question]]:
    """Of each part so many questions of each cell, all different."""
    most = sum(parts.values())
    task = DigitsTask(seed, heldout=None, operations=OPERATIONS, lengths=LENGTHS)
    unique = {cell: dict.fromkeys(task.question(cell, i) for i in range(4 * most)) for cell in task.cells}
    made: dict[str, list[Question]] = {}
    begin = 0
    for name, count in parts.items():
        made[name] = [
            Question(text=text, operation=cell.split("-")[0], length=int(cell.split("-")[1]))
            for cell, texts in unique.items()
            for text in list(texts)[begin : begin + count]
        ]
        assert len(made[name]) == count * len(unique), f"too few different questions for {name}"
        begin += count
    return made


def wrong_answer(question: Question, seed: int) -> str:
    """The right answer with one digit changed."""
    rng = stream(seed, "wrong", question.text)
    digits = str(solve(question.text)).split()
    place = int(rng.integers(len(digits)))
    digits[place] = str((int(digits[place]) + int(rng.integers(1, 10))) % 10)
    return " ".join(digits)


def write_data(folder: Path, asked: list[Question], seed: int, *, wrong: bool = False) -> Path:
    """A data folder of chats, the share WRONG_SHARE of them with a wrong answer if `wrong`."""
    if (folder / "herd.json").exists():
        return folder
    planted = set(stream(seed, "planted").permutation(len(asked))[: int(WRONG_SHARE * len(asked))]) if wrong else set()
    said = [wrong_answer(one, seed) if at in planted else str(solve(one.text)) for at, one in enumerate(asked)]
    sources = [WRONG if at in planted else "digits" for at in range(len(asked))]
    return write_chats(folder, asked, said, sources)


def write_chats(folder: Path, asked: Sequence[Question], answers: Sequence[str], sources: Sequence[str]) -> Path:
    """A data folder of chats, one for each question."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for one, answer, source in zip(asked, answers, sources, strict=True):
        said = [{"role": "user", "content": one.text}, {"role": "assistant", "content": answer}]
        rows.append(
            {
                "id": one.text, "split": "train", "kind": one.operation, "language": "und", "answer": answer,
                "messages": json.dumps(said), "verifier": "", "source": source, "tools": "",
            }
        )  # fmt: skip
    tables.write(folder / "chats.parquet", rows, tables.CHATS)
    new_tokenizer().save(folder / "tokenizer")
    write_json(folder / "herd.json", {"hash": folder_hash(folder)})
    return folder


def write_selection(folder: Path, rows: list[dict[str, Any]], data: Path) -> Path:
    """A selection folder of rows that are marked as kept or not."""
    folder.mkdir(exist_ok=True)
    tables.write(folder / FILE, rows, SELECTION)
    write_json(folder / "herd.json", {"parents": {"data": {"hash": hash_of(data)}}, "hash": folder_hash(folder)})
    return folder


def new_tokenizer() -> Tokenizer:
    """A token a digit."""
    return train_tokenizer(["user assistant copy reverse sort \n\n"] * 9, VOCABULARY)


def new_model(folder: Path, seed: int) -> Path:
    """A folder with first weights: three layers of width 128, a mixture in each, of text alone."""
    if not (folder / "config.json").exists():
        tokenizer = new_tokenizer()
        shape = preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
        moe = MoEConfig(num_experts=4, ffn_dim=DIM)
        shape = replace(shape, dim=DIM, num_layers=LAYERS, num_heads=2, num_kv_heads=1, moe=moe, vision=None)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
        huggingface.save_processor(shape, folder)
        huggingface.save(first_weights(shape, seed), folder)
    return folder


def fine_tune(
    out: Path, model: Path, data: Path, *, num_tokens: int, seed: int, rate: float, selection: Path | None = None
) -> Path:
    """`out`, fine-tuned now or before."""
    if not out.exists():
        base = SftConfig()
        config = SftConfig(
            seed=seed, num_tokens=num_tokens, batch_tokens=1024, context=64, replay_share=0.0, dtype="bfloat16",
            selection=str(selection or ""), optimizer=replace(base.optimizer, lr_scale=rate, decay=0.5),
            checkpoint=CheckpointConfig(every_s=600), loss_spikes=LossSpikesConfig(skip=("not_finite",)),
        )  # fmt: skip
        sft(config, model, data, out)
    return out
