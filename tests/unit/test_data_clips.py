"""Clips in pre-training: what is shown of them, when in a run, and that batches are a function of their step."""

import hashlib
import io
import json
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from herd.config import ParallelConfig, PretrainConfig, SftConfig, preset
from herd.core.batch import KINDS, Batch
from herd.core.lineage import read_lineage
from herd.core.tracker import read_metrics
from herd.data.loading import tables
from herd.data.loading.clip_shelf import ClipShelf
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.sft_batches import SftBatches
from herd.data.media.image import ImageProcessor
from herd.data.media.video import video_part
from herd.data.packages.wordings import CLIP, NAME
from herd.data.tokens.chat import render_messages
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.model.parallel.mesh import Mesh
from herd.model.parallel.pieces import share
from herd.stages.pretrain import pretrain

CONFIG = PretrainConfig(num_tokens=6000, batch_tokens=1000, context=64, picture_share=0.0, video_share=0.9)
RUN = replace(
    CONFIG,
    num_tokens=32_000,
    picture_schedule=(0.0, 1.0, 0.2, 0.3),
    video_schedule=(0.0, 0.0, 0.8, 0.3),
    shuffle_tokens=4096,
)
"""Text, pictures, clips beside a few pictures, all of them."""


def open_batches(data: Path, config: PretrainConfig, **options: Any) -> PretrainBatches:
    tokenizer = Tokenizer.load(data / "tokenizer")
    options = {"questions": NAME, "clip_questions": CLIP, "processor": processor_of(tokenizer), **options}
    return PretrainBatches(data, config, tokenizer, **options)


def processor_of(tokenizer: Tokenizer) -> ImageProcessor:
    return ImageProcessor(preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids).vision)


def shares(batch: Batch) -> dict[str, float]:
    return {kind: (batch.kinds_N == KINDS.index(kind)).float().mean().item() for kind in KINDS}


def digest_of(data: Path, steps: list[int]) -> list[str]:
    batches = open_batches(data, RUN)
    found = []
    for step in steps:
        batch = batches.batch(step)
        pixels = b"" if batch.images is None else batch.images.tiles.float().numpy().tobytes()
        found.append(hashlib.sha256(batch.tokens_N.numpy().tobytes() + pixels).hexdigest())
    return found


def test_a_run_goes_from_text_to_pictures_to_clips_to_all_of_them(tiny_data: Path) -> None:
    batches = open_batches(tiny_data, RUN)
    assert len(batches.windows) > 6 and batches.num_steps == pytest.approx(32, abs=1)
    found = [shares(batches.batch(step)) for step in range(batches.num_steps)]
    for part, (pictures, clips) in enumerate(RUN.shares):
        steps = found[part * 8 : part * 8 + 8]
        mean = {kind: sum(step[kind] for step in steps) / len(steps) for kind in KINDS}
        wanted = {"text": 1 - pictures - clips, "picture": pictures, "video": clips, "chat": 0.0, "planted": 0.0}
        # A piece is not cut to fill a window, and a whole part is three of them.
        assert mean == pytest.approx(wanted, abs=0.06), part


def test_another_process_and_another_order_make_the_same_batches(tiny_data: Path) -> None:
    steps = list(range(0, 32, 3))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        other = process.submit(digest_of, tiny_data, steps[1::2])
        backwards = digest_of(tiny_data, steps[::-1])[::-1]
        assert other.result() == backwards[1::2]
    assert len(set(backwards)) == len(steps)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_parts_of_the_ranks_make_up_the_batch(tiny_data: Path, ranks: int) -> None:
    parts = []
    for rank in range(ranks):
        mesh = Mesh(ParallelConfig())
        mesh.sizes["replicate"], mesh.place["replicate"] = ranks, rank
        parts.append(share(open_batches(tiny_data, RUN).batch(20), mesh, 64))  # each rank plans by itself
    whole = open_batches(tiny_data, RUN).batch(20)
    assert shares(whole)["video"] > 0.5 and whole.images is not None
    for name in ("tokens_N", "targets_N", "weights_N", "positions_N", "kinds_N"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    assert torch.equal(torch.cat([part.images.tiles for part in parts if part.images]), whole.images.tiles)


@pytest.mark.parametrize("asked", [0.0, 1.0])
def test_a_clip_is_shown_as_in_chat_and_its_names_are_learnt(tiny_data: Path, asked: float) -> None:
    batches = open_batches(tiny_data, replace(CONFIG, asked_share=asked, frames_a_clip=3))
    tokenizer, shelf = batches.tokenizer, batches.clip_shelf
    assert shelf is not None
    pieces = batches.plan(batches.windows[0]).clips
    assert len(pieces) > 5
    for piece in pieces:
        text, names = tokenizer.decode(piece.ids.tolist(), skip_special=False), shelf.rows.names(piece.clip)
        part = {"type": "video", "frames": shelf.frames(piece.clip, 3)}
        assert len(part["frames"]) == 3
        learnt = tokenizer.decode(piece.ids[piece.learnt].tolist(), skip_special=False)
        if not asked:
            lines = learnt.removesuffix("<|end_of_text|>").strip("\n").split("\n")
            assert {lang: names[lang] for lang in lines[::2]} == dict(zip(lines[::2], lines[1::2], strict=True))
            shown = render_messages(tokenizer, batches.shelf.processor, [{"role": "user", "content": [part]}])
            frames = tokenizer.decode(shown.ids, skip_special=False).split("\n\n")[1].split("<|eot|>")[0]
            assert text.startswith(f"<|begin_of_text|>{frames}") and text.endswith(learnt)
            continue
        turns = re.findall("user<.header_end.>\n\n(.*?)<.eot.>.*?assistant<.header_end.>\n\n(.*?)<.eot.>", text)
        messages: list[dict[str, Any]] = []
        for question, name in turns:
            question = question.split("<|image_end|>")[-1]
            [language] = [lang for lang, wordings in CLIP.items() if question in wordings]
            assert names[language] == name
            shown_once = [] if messages else [part]
            messages.append({"role": "user", "content": [*shown_once, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": name})
        rendered = render_messages(tokenizer, batches.shelf.processor, messages, add_generation_prompt=False)
        assert rendered.ids == piece.ids.tolist() and rendered.learnt == piece.learnt.tolist()


def write_clips(folder: Path, *frames: list[Image.Image], names: str = '{"en": "cat"}') -> Path:
    folder.mkdir()

    def png(picture: Image.Image) -> bytes:
        data = io.BytesIO()
        picture.save(data, "PNG")
        return data.getvalue()

    rows = [
        {
            "id": f"clip/{number}", "split": "train", "subject": "", "names": names,
            "frames": [png(one) for one in clip], "seconds": [float(second) for second in range(len(clip))],
        }
        for number, clip in enumerate(frames)
    ]  # fmt: skip
    tables.write(folder / "clips.parquet", rows, tables.CLIPS)
    return folder


def test_frames_are_evenly_spread_and_cut_as_in_chat(tiny_data: Path, tmp_path: Path) -> None:
    processor = processor_of(Tokenizer.load(tiny_data / "tokenizer"))
    side = processor.config.image_size
    colours = [(10 * number, 255 - 10 * number, 99) for number in range(10)]
    wide = [Image.new("RGB", (4 * side, side), colour) for colour in colours]
    shelf = ClipShelf(write_clips(tmp_path / "data", wide, wide[:1]), processor)
    for count, wanted in ((1, [0]), (2, [0, 5]), (4, [0, 2, 5, 7]), (30, list(range(10)))):
        assert [second for second, _ in shelf.frames(0, count)] == wanted
        blank = shelf.blank(0, count)
        assert [(second, tiles.pixels.shape) for second, tiles in blank] == [
            (second, tiles.pixels.shape) for second, tiles in shelf.frames(0, count)
        ]
    assert len(shelf.frames(1, 2)) == 1
    part = video_part(list(zip((0.0, 5.0), (wide[0], wide[5]), strict=True)))
    for (_, ours), (_, picture) in zip(shelf.frames(0, 2), part["frames"], strict=True):
        assert torch.equal(ours.pixels, processor.tiles(picture, max_tiles=part["max_tiles"]).pixels)


def test_all_frames_of_a_clip_are_in_the_same_view(tiny_data: Path, tmp_path: Path) -> None:
    import numpy as np

    tokenizer = Tokenizer.load(tiny_data / "tokenizer")
    still = ClipShelf(tiny_data, processor_of(tokenizer)).rows[0]["frames"][0]
    picture = Image.open(io.BytesIO(still)).convert("RGB")
    shelf = ClipShelf(write_clips(tmp_path / "data", [picture] * 4), processor_of(tokenizer))
    one, other = ([tiles.pixels for _, tiles in shelf.frames(0, 3, np.random.default_rng(seed))] for seed in (0, 1))
    assert all(torch.equal(frame, one[0]) for frame in one)
    assert not torch.equal(one[0], other[0])


def test_clips_kept_for_evaluation_are_never_on_the_shelf(tiny_data: Path) -> None:
    shelf = ClipShelf(tiny_data, processor_of(Tokenizer.load(tiny_data / "tokenizer")))
    held = {row["id"] for row in tables.read(tiny_data, "clips") if row["split"] != "train"}
    assert held and shelf.rows and not any(shelf.rows.find(name) is not None for name in held)


def test_a_clip_shows_as_many_frames_in_fine_tuning_as_asked_for(tiny_data: Path) -> None:
    tokenizer = Tokenizer.load(tiny_data / "tokenizer")
    for frames in (1, 4):
        config = SftConfig(num_tokens=2000, batch_tokens=1000, context=512, replay_share=0.0, frames_a_clip=frames)
        batches = SftBatches(tiny_data, config, tokenizer, processor_of(tokenizer))
        [clip, *_] = [chat for chat in batches.chats if '"video"' in json.dumps(chat.messages)]
        assert len(batches._render(clip).tiles) == frames


def test_a_share_of_clips_that_nothing_fills_counts_as_none_or_is_an_error(tiny_data: Path, tmp_path: Path) -> None:
    alone = open_batches(tiny_data, RUN, processor=ImageProcessor(None))
    assert {what.split(",")[0] for what in alone.left_out} == {"pictures", "clips"}
    assert "clips, as the model reads text alone: video_schedule=(0.0, 0.0, 0.8, 0.3) counts as 0" in alone.left_out
    assert shares(alone.batch(20))["text"] == 1
    for name in ("text.parquet", "tokenizer", "tokens"):
        (tmp_path / name).symlink_to(tiny_data / name)
    without = open_batches(tmp_path, replace(RUN, picture_schedule=()))
    assert without.left_out == {
        "tokens of clips, as the data folder has none: video_schedule=(0.0, 0.0, 0.8, 0.3) counts as 0": 8800
    }
    assert not open_batches(tmp_path, RUN, processor=ImageProcessor(None)).left_out  # nothing is there to leave out
    nameless = write_clips(tmp_path / "nameless", [Image.new("RGB", (8, 8))], names="{}")
    for name in ("text.parquet", "tokenizer", "tokens"):
        (nameless / name).symlink_to(tiny_data / name)
    with pytest.raises(HerdError, match="has no clip with a name to train on: set video_share=0"):
        open_batches(nameless, CONFIG)
    with pytest.raises(HerdError, match=r"0\.45 and 0\.6 are more than all tokens: the sum is at most 1"):
        PretrainConfig(video_share=0.6)
    with pytest.raises(HerdError, match="cut the run into 2 and 3 parts: give as many shares in both"):
        PretrainConfig(picture_schedule=(0.0, 0.5), video_schedule=(0.0, 0.1, 0.2))


def test_the_stage_trains_on_clips_or_counts_those_that_it_leaves_to_fine_tuning(
    tiny_folder: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PretrainConfig(num_tokens=1200, batch_tokens=600, context=64, picture_share=0.2, video_share=0.6)
    out = pretrain(config, tiny_folder, tiny_data, tmp_path / "clips")
    losses = [line["video_loss"] for line in read_metrics(out / "metrics.jsonl")]
    assert 5 < losses[0] < 7 and losses[-1] < losses[0]  # of 400 tokens, at random weights: 6.0
    assert "clips" not in capsys.readouterr().out
    out = pretrain(replace(config, num_tokens=600, video_share=0.0), tiny_folder, tiny_data, tmp_path / "none")
    train = sum(row["split"] == "train" for row in tables.read(tiny_data, "clips"))
    left_out = read_lineage(out)["left_out"]
    assert left_out["clips, which video_share=0 leaves to fine-tuning"] == train > 0
    assert f"left out {train} clips, which video_share=0" in capsys.readouterr().out
