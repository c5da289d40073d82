"""Chats that are longer than the context: dropped, cut or split, as the config chooses, and always counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folder import random_tokenizer

from herd.config import SftConfig
from herd.data.loading import tables
from herd.data.loading.sft_batches import SftBatches
from herd.data.media.image import ImageProcessor
from herd.data.tokens.chat import render_messages
from herd.errors import HerdError

TOKENIZER = random_tokenizer()
SYSTEM = {"role": "system", "content": "Be brief."}


def turn(number: int, words: int) -> list[dict[str, Any]]:
    said = " ".join(f"{number}{word}" for word in range(words))
    return [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": said}]


SHORT = [SYSTEM, *turn(1, 3)]
LONG = [SYSTEM, *(one for number in range(2, 9) for one in turn(number, 6))]
HUGE = [SYSTEM, *turn(9, 200), *turn(10, 3)]


def length(messages: list[dict[str, Any]]) -> int:
    return len(render_messages(TOKENIZER, ImageProcessor(None), messages, add_generation_prompt=False).ids)


CONTEXT = 120
assert length(SHORT) < length([SYSTEM, *turn(2, 6)]) < CONTEXT < length(LONG) < length(HUGE)


def batches(folder: Path, chats: list[list[dict[str, Any]]], *, tools: str = "", **options: Any) -> SftBatches:
    rows = [
        {
            "id": str(number), "split": "train", "kind": "chat", "language": "en", "messages": json.dumps(messages),
            "answer": "", "verifier": "", "source": "mine", "tools": tools,
        }
        for number, messages in enumerate(chats)
    ]  # fmt: skip
    tables.write(folder / "chats.parquet", rows, tables.CHATS)
    sizes = {"num_tokens": 10_000, "batch_tokens": CONTEXT, "context": CONTEXT, "max_epochs": 1}
    config = SftConfig(**{**sizes, **options})
    return SftBatches(folder, config, TOKENIZER, ImageProcessor(None))


def documents(made: SftBatches) -> list[tuple[list[int], list[int]]]:
    """The ids of every chat that is trained on, and those of them that are learnt."""
    found = []
    for step in range(made.num_steps):
        batch = made.batch(step)
        for begin, end in zip(batch.starts_S[:-1], batch.starts_S[1:], strict=True):
            ids, weights = batch.tokens_N[begin:end], batch.weights_N[begin:end]
            found.append((ids.tolist(), batch.targets_N[begin:end][weights > 0].tolist()))
    return found


def learnt(messages: list[dict[str, Any]]) -> list[int]:
    rendered = render_messages(TOKENIZER, ImageProcessor(None), messages, add_generation_prompt=False)
    return np.array(rendered.ids)[np.array(rendered.learnt)].tolist()


def test_dropped_by_default(tmp_path: Path) -> None:
    made = batches(tmp_path, [SHORT, LONG, HUGE])
    assert made.left_out[f"chats of more than context={CONTEXT} tokens"] == 2
    assert [one for _, one in documents(made)] == [learnt(SHORT)]


def test_cut_learns_the_beginning(tmp_path: Path) -> None:
    made = batches(tmp_path, [LONG, HUGE], long_chats="cut")
    assert made.left_out[f"chats of more than context={CONTEXT} tokens, cut"] == 2
    found = documents(made)
    for messages in (LONG, HUGE):
        ids = render_messages(TOKENIZER, ImageProcessor(None), messages, add_generation_prompt=False).ids
        assert ids[: CONTEXT - 1] in [one[: CONTEXT - 1] for one, _ in found]
    assert max(len(ids) for ids, _ in found) <= CONTEXT


def test_windows_learn_every_answer_that_fits_once_behind_the_system_message(tmp_path: Path) -> None:
    made = batches(tmp_path, [LONG, HUGE], long_chats="window")
    found = documents(made)
    assert max(len(ids) for ids, _ in found) <= CONTEXT
    begins = render_messages(TOKENIZER, ImageProcessor(None), [SYSTEM], add_generation_prompt=False).ids
    assert all(ids[: len(begins)] == begins for ids, _ in found)
    wanted = sorted(learnt([SYSTEM, *LONG[1:]]) + learnt(turn(10, 3)))  # the answer of 200 words fits nowhere
    assert sorted(token for _, own in found for token in own) == wanted


def test_one_pass_and_no_replay_without_text(tmp_path: Path) -> None:
    made = batches(tmp_path, [SHORT, [SYSTEM, *turn(2, 4)]])
    assert sorted(own for _, own in documents(made)) == sorted([learnt(SHORT), learnt([SYSTEM, *turn(2, 4)])])
    what = "tokens of replayed text, as the data folder has none: replay_share=0.25 counts as 0"
    assert made.left_out == {what: 2_500}
    assert made.replay is None


def test_the_tools_of_a_chat_are_shown_as_in_a_conversation(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    made = batches(tmp_path, [turn(1, 3)], tools=json.dumps([tool]), context=2_000)
    [(ids, _)] = documents(made)
    shown = render_messages(TOKENIZER, ImageProcessor(None), turn(1, 3), tools=[tool], add_generation_prompt=False).ids
    assert shown[: len(ids)] == ids
    assert len(ids) > length(turn(1, 3))


def test_a_folder_without_chats_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HerdError, match=r"has no chats \(chats.parquet is missing\)"):
        SftBatches(tmp_path, SftConfig(), TOKENIZER, ImageProcessor(None))
