"""Tables are read row by row in bounded memory, and batches are the same however little of them is kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herd.config import SftConfig, preset
from herd.core.batch import Batch
from herd.core.streams import stream
from herd.data.loading import picture_shelf, sft_batches, table_rows, tables
from herd.data.loading.chat_rows import TrainingChats
from herd.data.loading.picture_shelf import PictureShelf, picture_sizes
from herd.data.loading.sft_batches import SftBatches
from herd.data.loading.table_rows import Cache, NamedRows, TableRows, training_numbers
from herd.data.media.image import ImageProcessor, picture_size
from herd.data.tokens.tokenizer import Tokenizer, train_tokenizer

SFT = SftConfig(num_tokens=6000, batch_tokens=1500, context=512, replay_share=0.0)


@pytest.fixture
def tokenizer(tiny_data: Path) -> Tokenizer:
    return Tokenizer.load(tiny_data / "tokenizer")


@pytest.fixture
def processor(tokenizer: Tokenizer) -> ImageProcessor:
    return ImageProcessor(preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids).vision)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 60))
def test_a_cache_gives_what_was_made_and_keeps_no_more_than_its_size(asked: list[int], most: int) -> None:
    sizes = {number: 5 * number for number in range(10)}
    cache: Cache[int] = Cache(most, sizes.__getitem__)
    made: list[int] = []
    kept: list[int] = []  # the same by a slow list
    for number in asked:
        assert cache.get(number, lambda number: made.append(number) or number) == number
        expected = number not in kept
        kept = [*(one for one in kept if one != number), number]
        while sum(sizes[one] for one in kept) > most and len(kept) > 1:
            kept.pop(0)
        assert (made[-1:] == [number]) or not expected
    assert list(cache._kept) == kept and cache._bytes == sum(sizes[one] for one in kept)


def test_rows_by_number_are_those_of_the_whole_table(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "CACHE_BYTES", 1)
    for name, columns in (("chats", ["messages", "kind"]), ("clips", ["seconds", "frames"]), ("pictures", ["png"])):
        whole = tables.read(tiny_data, name)
        rows = TableRows(tiny_data / f"{name}.parquet", columns)
        assert len(rows) == len(whole)
        for number in np.random.default_rng(0).permutation(len(whole))[:40].tolist():
            assert rows[number] == {column: whole[number][column] for column in columns}
        train = [number for number, row in enumerate(whole) if row["split"] == "train"]
        assert training_numbers(tiny_data / f"{name}.parquet").tolist() == train


def test_named_rows_are_the_training_rows_those_with_names_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = [
        {
            "id": f"mine/{number}",
            "split": ("train", "subjects")[int(rng.integers(2))],
            "subject": str(number),
            "names": ("{}", json.dumps({"en": f"thing {number}"}))[int(rng.integers(2))],
            "png": b"png",
        }
        for number in range(60)
    ]
    tables.write(tmp_path / "pictures.parquet", table, tables.PICTURES)
    whole = sorted((row for row in table if row["split"] == "train"), key=lambda row: row["names"] == "{}")
    rows = NamedRows(tmp_path, "pictures", ["subject"])
    assert 0 < rows.num_named < len(rows) == len(whole) < len(table)
    assert rows.num_named == sum(row["names"] != "{}" for row in whole)
    for index, row in enumerate(whole):
        assert (rows[index]["subject"], rows.id(index), rows.find(row["id"])) == (row["subject"], row["id"], index)
        assert rows.names(index) == json.loads(row["names"])
    assert rows.find("none") is None and not len(NamedRows(tmp_path, "clips", ["frames"]))


def test_sizes_of_pictures_are_in_their_table_and_found_without(
    tiny_data: Path, tmp_path: Path, processor: ImageProcessor
) -> None:
    rows = tables.read(tiny_data, "pictures")
    expected = [list(picture_size(row["png"])) for row in rows]
    assert picture_sizes(tiny_data / "pictures.parquet").tolist() == expected
    old = tables.PICTURES.remove(tables.PICTURES.get_field_index("width"))
    tables.write(tmp_path / "pictures.parquet", [{**row, "height": 1} for row in rows], old)
    assert picture_sizes(tmp_path / "pictures.parquet").tolist() == expected
    shelf = PictureShelf(tiny_data, processor)
    assert all(shelf.size(index) == shelf.picture(index).size for index in range(len(shelf.rows)))


def equal(one: Batch, other: Batch) -> bool:
    tensors = ("tokens_N", "targets_N", "weights_N", "positions_N", "starts_S", "kinds_N")
    same = all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
    if one.images is None or other.images is None:
        return same and one.images is other.images
    return (
        same and torch.equal(one.images.tiles, other.images.tiles) and torch.equal(one.images.rows, other.images.rows)
    )


def test_batches_do_not_depend_on_what_is_kept(
    tiny_data: Path, tokenizer: Tokenizer, processor: ImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    much = SftBatches(tiny_data, SFT, tokenizer, processor)
    for module, names in ((table_rows, ["CACHE_BYTES"]), (picture_shelf, ["WHOLE_BYTES", "SMALL_BYTES"])):
        for name in names:
            monkeypatch.setattr(module, name, 1)
    little = SftBatches(tiny_data, SFT, tokenizer, processor)
    assert any(much.batch(step).images is not None for step in range(much.num_steps))
    assert all(equal(much.batch(step), little.batch(step)) for step in range(much.num_steps))


def test_chats_are_tokenised_once_for_a_format_and_never_when_a_run_starts_again(
    tiny_data: Path, tokenizer: Tokenizer, processor: ImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SftBatches(tiny_data, SFT, tokenizer, processor)
    rendered: list[Any] = []
    real = sft_batches.render_messages
    monkeypatch.setattr(
        sft_batches, "render_messages", lambda *args, **options: rendered.append(args) or real(*args, **options)
    )
    again = SftBatches(
        tiny_data, SftConfig(num_tokens=9000, context=200, seed=3, replay_share=0.0), tokenizer, processor
    )
    assert not rendered and again.num_steps
    other = train_tokenizer(["other words"] * 3, 300)
    SftBatches(tiny_data, SFT, other, ImageProcessor(None))
    assert rendered
    assert first.order.tolist() == SftBatches(tiny_data, SFT, tokenizer, processor).order.tolist()


@pytest.mark.parametrize("whole_share", [0.0, 0.5, 1.0])
def test_the_order_is_that_of_lengths_counted_one_by_one(
    whole_share: float, tiny_data: Path, tokenizer: Tokenizer, processor: ImageProcessor
) -> None:
    config = SftConfig(num_tokens=20_000, batch_tokens=2000, context=90, replay_share=0.0, tiled_share=1 - whole_share)
    made = SftBatches(tiny_data, config, tokenizer, processor)
    lengths = {}
    for chat in TrainingChats(tiny_data):
        sample = made._render(chat)
        if sample.learnt.any() and len(sample.ids) <= config.context:
            lengths[chat.number] = len(sample.ids)
    order: list[int] = []
    total = epoch = 0
    while total < config.num_tokens:
        for number in stream(config.seed, "chats", epoch).permutation(list(lengths)):
            order.append(int(number))
            total += lengths[int(number)]
            if total >= config.num_tokens:
                break
        epoch += 1
    assert 0 < len(lengths) < len(made.chats)
    assert made.order.tolist() == order
    sizes = [len(made.batch(step).tokens_N) for step in range(made.num_steps)]
    assert sum(sizes) == sum(lengths[number] for number in order)
