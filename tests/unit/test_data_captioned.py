"""Pictures and videos with captions, from files, rows and tars."""

import io
import json
import tarfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from video_files import clip

from herd.config import CleaningConfig, DataConfig, ImageSource, PretrainConfig, SftConfig, VideoSource
from herd.core.files import read_json
from herd.core.inputs import find_files
from herd.data.loading import tables
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.sft_batches import SftBatches
from herd.data.media.image import ImageProcessor
from herd.data.sources.captioned import Captioned, CaptionedFiles, kind_of_tar
from herd.data.sources.columns import kind_of_rows
from herd.data.sources.detect import detect, sources_of
from herd.data.sources.readers import files_of
from herd.data.sources.source import Notes
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.stages.data import build_data

SWITCHES = {field.name: False for field in fields(CleaningConfig) if field.type is bool}
SIZES: dict[str, Any] = {"min_bytes": 0, "max_symbol_share": 1.0, "boilerplate_documents": 0, "near_duplicates": 0.0}
OFF = replace(CleaningConfig(), **{**SWITCHES, **SIZES})


def png(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(data, "PNG")
    return data.getvalue()


def read(path: Path, *, videos: bool = False, **options: str) -> tuple[list[Captioned], Notes]:
    notes, kind = Notes(), VideoSource if videos else ImageSource
    config = kind(path=str(path), name="mine", **options)  # type: ignore[arg-type]
    return list(CaptionedFiles(config, find_files(str(path)), notes)), notes


def captions(found: list[Captioned]) -> dict[bytes, str]:
    return {one.media if isinstance(one.media, bytes) else one.media.read_bytes(): one.caption for one in found}


WANTED = {png("red"): "A red thing.", png("blue"): "Ein blaues Ding."}


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write(folder: Path, form: str) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "a.png").write_bytes(png("red"))
    (folder / "in" / "b.PNG").write_bytes(png("blue"))
    rows = [{"file_name": "in/a.png", "text": "A red thing."}, {"file_name": "in/b.PNG", "text": "Ein blaues Ding."}]
    if form == "text files":
        (folder / "in" / "a.txt").write_bytes(b"\xef\xbb\xbfA red thing.\r\n")
        (folder / "in" / "b.txt").write_text("Ein blaues Ding.\n", encoding="utf-16")
    elif form == "JSON files":
        (folder / "in" / "a.json").write_text('{"caption": "A red thing."}')
        (folder / "in" / "b.json").write_text('{"text": ["Ein blaues Ding.", "another"]}')
    elif form == "ImageFolder":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif form == "CSV":
        lines = [",".join(row.values()) for row in rows]
        (folder / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    elif form == "Parquet with bytes":
        stored = [{"image": {"bytes": image, "path": None}, "caption": said} for image, said in WANTED.items()]
        parquet.write_table(pyarrow.Table.from_pylist(stored), folder / "train.parquet")
        for name in ("a.png", "b.PNG"):
            (folder / "in" / name).unlink()
    else:
        members = {
            "x/001.png": png("red"), "x/001.txt": b"A red thing.",
            "x/002.json": b'{"caption": "Ein blaues Ding."}', "x/002.png": png("blue"),
        }  # fmt: skip
        tar_of(folder / "shard-000.tar", members)
        for name in ("a.png", "b.PNG"):
            (folder / "in" / name).unlink()


@pytest.mark.parametrize("form", ["text files", "JSON files", "ImageFolder", "CSV", "Parquet with bytes", "WebDataset"])
def test_each_form_gives_the_same_pairs(form: str, tmp_path: Path):
    write(tmp_path, form)
    found, notes = read(tmp_path)
    assert captions(found) == WANTED
    assert not notes.skipped


def test_what_cannot_be_used_is_counted(tmp_path: Path):
    (tmp_path / "alone.png").write_bytes(png("red"))
    (tmp_path / "empty.png").write_bytes(png("red"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "long.png").write_bytes(png("red"))
    (tmp_path / "long.txt").write_text("x" * 30_000)
    (tmp_path / "rows.jsonl").write_text(
        '{"image": "gone.png", "caption": "a"}\n{"image": null, "caption": "b"}\n{"image": "alone.png"}\n'
    )
    members = {"1.png": png("red"), "2.txt": b"no picture", "3.png": png("red"), "3.json": b"{broken"}
    tar_of(tmp_path / "shard.tar", members)
    (tmp_path / "damaged.tar").write_bytes(b"no tar" * 200)
    found, notes = read(tmp_path)
    assert not found
    assert notes.skipped == {
        "pictures that are not there": 1,
        "captions without a picture": 1,
        "pictures without a caption": 4,  # of the rows, alone.png itself, and two of the tar
        "pictures with an empty caption": 1,
        "pictures with a caption of more than 20,000 characters": 1,
        "samples without a picture": 1,
        "captions that are not JSON": 1,
        "files that are damaged, or unreadable": 1,
    }


def test_rows_without_the_columns_are_refused_with_the_nearest_name(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"imagee": "a.png", "caption": "a"}\n')
    with pytest.raises(HerdError, match=r"no picture in the columns imagee, caption; did you mean 'image' by 'imagee'"):
        read(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"url_of_it": "a.png", "words": "a"}\n')
    (tmp_path / "a.png").write_bytes(png("red"))
    found, _ = read(tmp_path / "rows.jsonl", column="url_of_it", caption="words")
    assert captions(found) == {png("red"): "a"}


def test_videos_are_found_by_their_suffixes(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"film")
    (tmp_path / "a.txt").write_text("A dog runs.")
    (tmp_path / "b.png").write_bytes(png("red"))
    found, notes = read(tmp_path, videos=True)
    assert captions(found) == {b"film": "A dog runs."}
    assert not notes.skipped
    tar = tar_of(tmp_path / "v.tar", {"1.mp4": b"x", "1.txt": b"y"})
    assert kind_of_tar(tar, notes) == "videos"
    assert kind_of_tar(tar_of(tmp_path / "i.tar", {"1.txt": b"y", "1.jpg": b"x"}), notes) == "images"
    assert kind_of_tar(tar_of(tmp_path / "t.tar", {"1.txt": b"y"}), notes) == ""


def test_members_of_a_tar_are_not_written_anywhere(tmp_path: Path):
    members = {"../../evil.png": png("red"), "../../evil.txt": b"A red thing."}
    tar_of(tmp_path / "shard.tar", members)
    found, _ = read(tmp_path / "shard.tar")
    assert captions(found) == {png("red"): "A red thing."}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["shard.tar"]


def test_a_folder_of_everything_is_built_shown_and_trained_on(tmp_path: Path, tiny_folder: Path):
    pytest.importorskip("av")
    mine = tmp_path / "mine"
    (mine / "photos").mkdir(parents=True)
    colours = ("red", "blue", "green", "yellow", "black", "white", "purple", "orange")
    for colour in colours:
        (mine / "photos" / f"{colour}.png").write_bytes(png(colour))
        (mine / "photos" / f"{colour}.txt").write_text(f"A small rectangle that is painted {colour} all over.")
    (mine / "photos" / "again.png").write_bytes(png("red"))
    (mine / "photos" / "again.txt").write_text("The same once more.")
    (mine / "photos" / "broken.png").write_bytes(png("red")[:40])
    (mine / "photos" / "broken.txt").write_text("A broken file.")
    (mine / "film").mkdir()
    (mine / "film" / "grey.mp4").write_bytes(clip(20))
    (mine / "film" / "grey.json").write_text('{"caption": "Grey becomes brighter, write to me@example.org."}')
    (mine / "notes.md").write_text("The harbour was quiet when the ferry left for the islands. " * 30)
    config = DataConfig(**sources_of(detect([str(mine)], Notes())), tokenizer=str(tiny_folder), cleaning=OFF)
    assert [source.path for source in (*config.images, *config.videos)] == [str(mine)] * 2
    assert len(config.text) == 1
    build_data(config, tmp_path / "data")
    pictures = tables.read(tmp_path / "data", "pictures")
    named = {json.loads(row["names"])["en"] for row in pictures}
    assert len(pictures) == len(named) == len(colours)
    assert sum("painted" in name for name in named) == len(colours) - 1  # of two files with red, the first by name
    assert {len(row["frames"]) for row in tables.read(tmp_path / "data", "clips")} == {2}
    chats = tables.read(tmp_path / "data", "chats")
    assert len(chats) == len(colours) + 1
    assert "[email]" in next(row["messages"] for row in chats if '"video"' in row["messages"])
    card = read_json(tmp_path / "data" / "herd.json")["card"]
    skipped = {why: one["count"] for source in card["sources"] for why, one in source.get("skipped", {}).items()}
    assert skipped == {"pictures that are there already": 1, "pictures that cannot be read": 1}
    assert {row["id"] for row in chats} == {
        f"caption/{row['id']}" for name in ("pictures", "clips") for row in tables.read(tmp_path / "data", name)
    }
    # Pre-training shows the pictures with their captions, fine-tuning asks for these.
    tokenizer = Tokenizer.load(tiny_folder)
    processor = ImageProcessor(huggingface.open_folder(tiny_folder).config.vision)
    options = {"num_tokens": 3000, "batch_tokens": 1000, "context": 300}
    config = PretrainConfig(**options, video_share=0.2)
    pretrain = PretrainBatches(tmp_path / "data", config, tokenizer, processor)
    sft = SftBatches(tmp_path / "data", SftConfig(**options, replay_share=0.0), tokenizer, processor)
    for batches in (pretrain, sft):
        texts = [tokenizer.decode(batches.batch(step).tokens_N.tolist()) for step in range(batches.num_steps)]
        assert any("painted" in text for text in texts) and any("Grey becomes brighter" in text for text in texts)
        assert any(batches.batch(step).images is not None for step in range(batches.num_steps))


def test_captions_are_no_documents(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / "a.txt").write_text("A red thing.")
    (tmp_path / "b.txt").write_text("A document.")
    found = {one.kind: [file.path.name for file in one.files] for one in detect([str(tmp_path)], Notes())}
    assert found == {"images": ["a.png", "a.txt"], "text": ["b.txt"]}
    texts = [file.path.name for file in files_of(str(tmp_path / "*.txt"), Notes())]
    assert texts == ["b.txt"]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"file_name": "a.jpg", "text": "A cat."}, "images"),
        ({"image": {"bytes": b"x", "path": None}, "caption": "A cat."}, "images"),
        ({"video": "a.mp4", "caption": "A cat."}, "videos"),
        ({"image": "a.jpg", "messages": [{"role": "user", "content": "<image>"}]}, "chats"),
        ({"path": "docs/a.md", "text": "A cat."}, "text"),
    ],
)
def test_rows_are_of_pictures_where_they_name_one(row: dict[str, Any], kind: str):
    found = kind_of_rows(row)
    assert found is not None
    assert found[0] == kind
