"""Token shards hold every training document once, in the same bytes however they were written, and say when they are
damaged."""

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest

from herd.core import workers
from herd.core.files import sha256, work_folder
from herd.core.workers import Workers
from herd.data.tokens import shard_writer
from herd.data.tokens.shard_folders import open_shards
from herd.data.tokens.shard_writer import write_shards
from herd.data.tokens.shards import TokenShards
from herd.data.tokens.tokenizer import Tokenizer, train_tokenizer
from herd.errors import HerdError

WORDS = ("river", "town", "Lied", "música", "人人生而自由", "garden.\n\nMarket", "<|eot|>", " ", "history", "42,000")


def make_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "id": str(index),
            "split": "heldout" if index % 7 == 3 else "train",
            "language": ("en", "de", "zh")[int(rng.integers(3))],
            "source": ("web", "books")[int(rng.integers(2))],
            "text": " ".join(WORDS[int(i)] for i in rng.integers(len(WORDS), size=int(rng.integers(0, 60)))),
            "repeat": int(rng.integers(1, 4)),
        }
        for index in range(count)
    ]


def data_folder(path: Path, rows: list[dict[str, Any]], *, group: int = 100) -> Path:
    path.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path / "text.parquet", row_group_size=group)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([" ".join(WORDS)] * 3, 320)


ROWS = make_rows(400)
SMALL: dict[str, int] = {"shard_bytes": 6000}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shard_writer, "BLOCK_BYTES", 2000)
    return data_folder(tmp_path / "data", ROWS)


def hashes(path: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(path.iterdir())}


def test_each_training_document_is_there_once_with_its_index(folder: Path, tokenizer: Tokenizer) -> None:
    found = TokenShards(write_shards(folder, tokenizer, **SMALL))
    training = [(row, values) for row, values in enumerate(ROWS) if values["split"] == "train"]
    assert len(found) == len(training)
    assert len(list(found.path.glob("train-*.bin"))) > 3
    for index, (row, values) in enumerate(training):
        ids = [tokenizer.ids.bos, *tokenizer.encode(values["text"]), tokenizer.ids.end_of_text]
        assert found.tokens(index).tolist() == ids
        assert found.tokens(index, 1, 3).tolist() == ids[1:3]
        assert found.lengths(np.array([index])) == len(ids)
        assert found.languages[found.column("languages")[index]] == values["language"]
        assert found.sources[found.column("sources")[index]] == values["source"]
        assert found.column("repeats")[index] == values["repeat"]
        assert found.column("rows")[index] == row
    assert found.tokens(0).dtype == np.uint16
    for group in found.manifest["groups"]:
        own = [v for _, v in training if (v["source"], v["language"]) == (group["source"], group["language"])]
        assert group["documents"] == len(own)
        assert group["bytes"] == sum(len(values["text"].encode()) for values in own)
        lengths = [len(tokenizer.encode(values["text"])) + 2 for values in own]
        assert group["tokens"] == sum(lengths)
        repeats = [values["repeat"] for values in own]
        assert group["repeated_tokens"] == sum(n * r for n, r in zip(lengths, repeats, strict=True))
    found.verify()


def test_a_large_vocabulary_takes_four_bytes(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "vocab_size", 2**16 + 1)
    found = TokenShards(write_shards(folder, tokenizer))
    assert found.tokens(0).dtype == np.uint32
    assert found.tokens(0)[0] == tokenizer.ids.bos


class Suicidal:
    """A tokenizer whose process is killed the first times that it meets a word."""

    def __init__(self, tokenizer: Tokenizer, flags: Path, *, times: int) -> None:
        self.tokenizer, self.flags, self.times = tokenizer, flags, times
        self.ids, self.vocab_size, self.document = tokenizer.ids, tokenizer.vocab_size, tokenizer.document

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        if any("Market" in text for text in texts[:1]):
            for number in range(self.times):
                if not (flag := self.flags / str(number)).exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return self.tokenizer.encode_batch(texts)


def test_any_number_of_workers_writes_the_same_bytes_also_when_one_is_killed(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    alone = hashes(write_shards(folder, tokenizer, **SMALL))
    killed: Any = Suicidal(tokenizer, tmp_path, times=1)
    assert hashes(write_shards(folder, killed, out=tmp_path / "two", workers=Workers(number=2), **SMALL)) == alone
    assert (tmp_path / "0").exists()


def test_a_worker_that_is_killed_again_and_again_is_an_error(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: Any = Suicidal(tokenizer, tmp_path, times=50)
    monkeypatch.setattr(workers, "TRIES", 1)
    with pytest.raises(HerdError, match=r"rows .* was ended 1 times"):
        write_shards(folder, killed, workers=Workers(number=2), **SMALL)
    assert not (folder / "tokens").exists()


def test_a_run_that_was_killed_resumes_after_its_whole_shards(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hashes(write_shards(folder, tokenizer, out=tmp_path / "whole", **SMALL))
    encode, seen = shard_writer.encode_block, list[str]()

    def fails_late(tokenizer: Tokenizer, block: shard_writer.Block) -> Any:
        if len(seen) >= 5:
            raise KeyboardInterrupt
        seen.append(block.texts[0])
        return encode(tokenizer, block)

    monkeypatch.setattr(shard_writer, "encode_block", fails_late)
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, tokenizer, **SMALL)
    kept = sorted(path.name for path in work_folder(folder / "tokens").glob("[0-9]*.json"))
    assert kept and not (folder / "tokens").exists()
    again: list[str] = []
    monkeypatch.setattr(
        shard_writer, "encode_block", lambda *args: (again.append(args[1].texts[0]), encode(*args))[1]
    )  # fmt: skip
    assert hashes(write_shards(folder, tokenizer, **SMALL)) == whole
    assert seen[0] not in again


def test_of_two_that_write_at_the_same_time_one_waits_for_the_other(folder: Path, tokenizer: Tokenizer) -> None:
    with ThreadPoolExecutor(3) as pool:
        written = [pool.submit(write_shards, folder, tokenizer, quiet=True, **SMALL) for _ in range(3)]
        assert {future.result() for future in written} == {folder / "tokens"}
    TokenShards(folder / "tokens").verify()
    assert not work_folder(folder / "tokens").exists()


def test_damaged_shards_are_named_with_the_fix(folder: Path, tokenizer: Tokenizer) -> None:
    path = write_shards(folder, tokenizer, **SMALL)
    shard = path / "train-00001.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    with pytest.raises(HerdError, match=r"train-00001.bin has .* bytes instead of .*: remove .*tokens and re-run"):
        TokenShards(path)
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(HerdError, match=r"train-00001.bin was changed"):
        TokenShards(path).verify()
    shard.unlink()
    with pytest.raises(HerdError, match=r"train-00001.bin is missing"):
        TokenShards(path)
    shutil.rmtree(path)
    open_shards(folder, tokenizer).verify()


def test_another_tokenizer_gets_tokens_of_its_own_once(
    folder: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(folder, tokenizer)
    assert open_shards(folder, tokenizer).path == folder / "tokens"
    other = train_tokenizer(["other words than those"], 300)
    found = open_shards(folder, other)
    assert found.path.parent == folder and found.path.name.startswith("tokens-")
    assert "are written to" in capsys.readouterr().out
    monkeypatch.setattr(shard_writer, "write_shards", None)
    assert open_shards(folder, other).path == found.path
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_has_its_tokens_in_the_cache(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert (tmp_path / "cache") in open_shards(folder, tokenizer).path.parents


def test_tokens_of_another_text_are_not_used(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_shards(folder, tokenizer)
    shutil.move(data_folder(tmp_path / "other", make_rows(400, seed=1)) / "text.parquet", folder / "text.parquet")
    found = open_shards(folder, tokenizer)
    assert found.path != folder / "tokens"
    rows = parquet.read_table(folder / "text.parquet").to_pylist()
    assert len(found) == sum(row["split"] == "train" for row in rows)


def test_sources_say_weights_and_licences(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "sources.json").write_text(json.dumps({"web": {"weight": 2.0, "max_epochs": 4, "licence": "MIT"}}))
    found = TokenShards(write_shards(folder, tokenizer))
    assert found.manifest["sources"] == {
        "web": {"weight": 2.0, "max_epochs": 4, "licence": "MIT"},
        "books": {"weight": 1.0, "max_epochs": 0.0, "licence": ""},
    }


def test_a_folder_without_training_text_has_no_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [row | {"split": "heldout"} for row in ROWS[:5]]
    found = open_shards(data_folder(tmp_path / "data", rows), tokenizer)
    assert len(found) == found.num_tokens == 0
    assert len(found.offsets) == 1


def test_a_missing_table_or_column_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(HerdError, match=r"text.parquet is missing"):
        open_shards(tmp_path / "none", tokenizer)
    rows = [{"split": "train", "text": "a"}]
    with pytest.raises(HerdError, match="lacks the column language, source"):
        open_shards(data_folder(tmp_path / "few", rows), tokenizer)
