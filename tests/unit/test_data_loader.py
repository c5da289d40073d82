"""Batches are a function of their step, keep what is held out away, and learn what they should."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from herd.config import PretrainConfig, SftConfig, preset
from herd.core.batch import KINDS
from herd.data.loading import picture_shelf, tables
from herd.data.loading.batches import prefetch
from herd.data.loading.pack import steps_of
from herd.data.loading.picture_shelf import PictureShelf
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.sft_batches import SftBatches
from herd.data.media import image
from herd.data.media.image import ImageProcessor, read_picture
from herd.data.packages.wordings import NAME
from herd.data.tokens.chat import render_messages
from herd.data.tokens.tokenizer import Tokenizer

PRETRAIN = replace(PretrainConfig(), num_tokens=8000, batch_tokens=1000, context=64)
SFT = replace(SftConfig(), num_tokens=8000, batch_tokens=1000, context=256, replay_share=0.0)


@pytest.fixture(scope="module")
def tokenizer(tiny_data: Path) -> Tokenizer:
    return Tokenizer.load(tiny_data / "tokenizer")


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> ImageProcessor:
    return ImageProcessor(preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids).vision)


@pytest.mark.parametrize("kind", [PretrainBatches, SftBatches])
def test_a_batch_is_a_function_of_its_step(
    kind: type, tiny_data: Path, tokenizer: Tokenizer, processor: ImageProcessor
) -> None:
    config = PRETRAIN if kind is PretrainBatches else SFT
    one, other = (kind(tiny_data, config, tokenizer, processor) for _ in range(2))
    assert one.num_steps == other.num_steps > 3
    one.batch(0)
    for (step, coming), direct in zip(
        prefetch(one, 2, lambda: False), map(other.batch, range(2, other.num_steps)), strict=True
    ):
        ran = coming.result()
        assert torch.equal(ran.tokens_N, direct.tokens_N), step
        if ran.images is not None:
            assert torch.equal(ran.images.tiles, direct.images.tiles), step


@pytest.mark.parametrize("kind", [PretrainBatches, SftBatches])
def test_targets_stay_inside_their_document_and_patches_have_their_tiles(
    kind: type, tiny_data: Path, tokenizer: Tokenizer, processor: ImageProcessor
) -> None:
    batches = kind(tiny_data, PRETRAIN if kind is PretrainBatches else SFT, tokenizer, processor)
    for step in range(batches.num_steps):
        batch = batches.batch(step)
        ends = batch.starts_S[1:].long() - 1
        assert (batch.weights_N[ends] == 0).all()
        assert (batch.positions_N[batch.starts_S[:-1].long()] == 0).all()
        learnt = torch.nonzero(batch.weights_N)[:, 0]
        assert torch.equal(batch.targets_N[learnt], batch.tokens_N[learnt + 1])
        assert batch.shares_N.sum() == pytest.approx(1)
        if batch.images is not None:
            assert len(batch.images.rows) == len(batch.images.tiles) * processor.config.tokens_per_tile
        control = {index for token, index in tokenizer.special.items() if "image" in token or token == "<|patch|>"}
        assert not control & set(batch.targets_N[learnt].tolist())


def test_only_what_the_assistant_said_is_learnt(
    tiny_data: Path, tokenizer: Tokenizer, processor: ImageProcessor
) -> None:
    batch = SftBatches(tiny_data, SFT, tokenizer, processor).batch(0)
    header = torch.tensor(tokenizer.encode("assistant"))
    ids, eot, end = batch.tokens_N.tolist(), tokenizer.special["<|eot|>"], tokenizer.special["<|header_end|>"]
    speaking, wanted = False, []
    for place, token in enumerate(ids):
        # Two newlines stand between the header and what is said.
        wanted.append(speaking)
        if token == end:
            speaking = ids[place - len(header) : place] == header.tolist()
        elif token == eot:
            speaking = False
    newlines = set(tokenizer.encode("\n\n"))
    for place, (said, weight) in enumerate(zip(wanted[1:], batch.weights_N.tolist(), strict=False)):
        if ids[place + 1] not in newlines:
            assert (weight > 0) == said, place


def test_a_picture_that_is_asked_about_is_a_chat(
    tiny_data: Path, tokenizer: Tokenizer, processor: ImageProcessor
) -> None:
    config = replace(PRETRAIN, picture_share=0.9, asked_share=1.0, names_asked=2)
    batches = PretrainBatches(tiny_data, config, tokenizer, processor, questions=NAME)
    chats = batches.plan(batches.windows[0]).pictures
    assert len(chats) > 10
    for piece in chats:
        text = tokenizer.decode(piece.ids.tolist(), skip_special=False)
        turns = re.findall("user<.header_end.>\n\n(.*?)<.eot.>.*?assistant<.header_end.>\n\n(.*?)<.eot.>", text)
        assert 1 <= len(turns) <= 2
        names = batches.shelf.rows.names(piece.picture)
        messages = []
        for turn, (asked, name) in enumerate(turns):
            question = asked.split("<|image_end|>")[-1]
            [language] = [lang for lang, wordings in NAME.items() if question in wordings]
            assert names[language] == name
            side = processor.config.image_size
            size = (side, side) if piece.whole else batches.shelf.picture(piece.picture).size
            picture = [{"type": "image", "image": Image.new("RGB", size)}] if turn == 0 else []
            messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": name})
        rendered = render_messages(tokenizer, processor, messages, add_generation_prompt=False)
        assert rendered.ids == piece.ids.tolist()
        assert rendered.learnt == piece.learnt.tolist()


@pytest.mark.parametrize("kind", [PretrainBatches, SftBatches])
def test_planning_decodes_no_picture(
    kind: type, tiny_data: Path, tokenizer: Tokenizer, processor: ImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    for module in (picture_shelf, image):
        monkeypatch.setattr(module, "read_picture", lambda data: decoded.append(data) or read_picture(data))
    batches = kind(tiny_data, PRETRAIN if kind is PretrainBatches else SFT, tokenizer, processor)
    assert not decoded
    while not decoded:  # which a batch that shows a picture does
        batches.batch(batches.num_steps - 1)
        batches.num_steps -= 1


def test_a_blank_has_the_layout_of_its_picture(tiny_data: Path, processor: ImageProcessor) -> None:
    shelf = PictureShelf(tiny_data, processor)
    for index in range(len(shelf.rows)):
        cut, blank = processor.tiles(shelf.picture(index)), shelf.blank(index, whole=False)
        assert shelf.size(index) == shelf.picture(index).size
        assert (cut.rows, cut.columns, cut.pixels.shape) == (blank.rows, blank.columns, blank.pixels.shape)


def test_pictures_kept_for_evaluation_are_never_on_the_shelf(tiny_data: Path, processor: ImageProcessor) -> None:
    shelf = PictureShelf(tiny_data, processor)
    held = {row["id"] for row in tables.read(tiny_data, "pictures") if row["split"] != "train"}
    assert held and shelf.rows and not any(shelf.rows.find(name) is not None for name in held)


def test_both_kinds_are_in_the_mix(tiny_data: Path, tokenizer: Tokenizer, processor: ImageProcessor) -> None:
    batches = PretrainBatches(tiny_data, PRETRAIN, tokenizer, processor, questions=NAME)
    kinds = torch.cat([batches.batch(step).kinds_N for step in range(batches.num_steps)])
    share = (kinds == KINDS.index("picture")).float().mean().item()
    assert share == pytest.approx(PRETRAIN.picture_share, abs=0.05)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), size=st.integers(1, 100))
def test_every_sample_is_in_exactly_one_step(lengths: list[int], size: int) -> None:
    import numpy as np

    steps = steps_of(np.array(lengths), size)
    assert [i for step in steps for i in step] == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in step) < size + 50 for step in steps)


def test_nothing_is_tokenised_and_no_text_is_read_when_training_starts(
    tiny_data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    monkeypatch.setattr(tables, "read", lambda *_, **__: [])
    batches = PretrainBatches(tiny_data, replace(PRETRAIN, picture_share=0.0), tokenizer, ImageProcessor(None))
    assert batches.batch(0).size > 900


def test_two_percent_of_the_text_at_most_is_lost_to_packing(tiny_data: Path, tokenizer: Tokenizer) -> None:
    config = replace(PRETRAIN, picture_share=0.0, num_tokens=40_000, context=PretrainConfig().context)
    batches = PretrainBatches(tiny_data, config, tokenizer, ImageProcessor(None))
    steps = [batches.batch(step) for step in range(batches.num_steps)]
    ends = sum(int((step.tokens_N == tokenizer.ids.end_of_text).sum()) for step in steps)
    no_target = sum(int((step.weights_N == 0).sum()) for step in steps)
    shown = sum(step.size for step in steps)
    assert no_target - ends >= 0 and batches.packing_waste * shown >= no_target - ends
    assert batches.packing_waste < 0.02
