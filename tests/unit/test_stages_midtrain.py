"""Mid-training: lengths grow by stages, the shares of the tokens are as asked, ranks make the losses of one."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herd.bench.ranks import on_ranks
from herd.config import MidtrainConfig, ParallelConfig
from herd.core.files import read_json, write_json
from herd.core.lineage import Stage, read_lineage
from herd.core.tracker import read_metrics
from herd.data.loading import tables
from herd.data.media.image import ImageProcessor
from herd.data.packages.long_batches import LongBatches
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.load import load
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.parallel import Parallel
from herd.model.parallel.mesh import Mesh
from herd.stages.language import train_language
from herd.stages.midtrain import midtrain
from herd.stages.model_folder import save_model

CONFIG = MidtrainConfig(
    num_tokens=12_000, batch_tokens=1500, lengths=(512, 1024, 2048), plain_share=0.1, short_share=0.4, context=128
)


@pytest.fixture(scope="module")
def batches(tiny_data: Path) -> LongBatches:
    return LongBatches(tiny_data, CONFIG, Tokenizer.load(tiny_data / "tokenizer"), ImageProcessor(None))


def test_long_documents_grow_by_stages_and_take_their_share(batches: LongBatches) -> None:
    steps = [batches.batch(step) for step in range(batches.num_steps)]
    longest = [int(torch.diff(batch.starts_S).max()) for batch in steps]
    assert [batches.length(step) for step in range(batches.num_steps)] == [512] * 3 + [1024] * 3 + [2048] * 2
    assert all(length <= batches.length(step) for step, length in enumerate(longest))
    assert max(longest) > 1900
    total = sum(batch.size for batch in steps)
    short = sum(int(n) for batch in steps for n in torch.diff(batch.starts_S) if n <= CONFIG.context)
    assert short / total == pytest.approx(CONFIG.short_share, abs=0.1)


def test_positions_count_inside_each_document_and_no_target_crosses_its_end(batches: LongBatches) -> None:
    batch = batches.batch(0)
    begins, ends = batch.starts_S[:-1].tolist(), batch.starts_S[1:].tolist()
    for begin, end in zip(begins, ends, strict=True):
        assert batch.positions_N[begin:end].tolist() == list(range(end - begin))
        assert batch.weights_N[end - 1] == 0
        learnt = torch.nonzero(batch.weights_N[begin : end - 1])[:, 0] + begin
        assert torch.equal(batch.targets_N[learnt], batch.tokens_N[learnt + 1])


def test_a_batch_is_a_function_of_its_step(batches: LongBatches, tiny_data: Path) -> None:
    again = LongBatches(tiny_data, CONFIG, Tokenizer.load(tiny_data / "tokenizer"), ImageProcessor(None))
    for step in (5, 2):
        assert torch.equal(again.batch(step).tokens_N, batches.batch(step).tokens_N)


def test_a_quote_repeats_what_is_before_it(batches: LongBatches) -> None:
    rng = np.random.default_rng(0)
    ids, learnt = batches._quoting(batches.text.window(700, rng), rng)
    text = " ".join(map(str, ids))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], learnt > 0, [0]])))
    for start, end in edges.reshape(-1, 2):
        assert text.count(" ".join(map(str, ids[start - 4 : end]))) >= 2


def test_a_stretch_of_a_language_has_the_tokens_of_its_documents_as_one_text(
    batches: LongBatches, tiny_data: Path
) -> None:
    rows = [row for row in tables.read(tiny_data, "text") if row["split"] == "train"]
    for language, text in batches.text.languages.items():
        texts = [row["text"] + "\n\n" for row in rows if row["language"] == language]
        whole = [index for ids in batches.tokenizer.encode_batch(texts) for index in ids]
        length = min(len(whole), 3000)
        assert text.stretch(0, length).tolist() == whole[:length]
        first = batches.tokenizer.encode(texts[0])
        assert text.stretch(5, length).tolist()[: len(first) - 5] == first[5:]
        last = text.stretch(text.tokens - 4, length).tolist()  # from its end on again from its beginning
        assert "".join(map(chr, whole[:100])) in "".join(map(chr, last))


def test_documents_of_needles_alone_never_ask_twice_and_often_share_words(batches: LongBatches) -> None:
    rng, shared = np.random.default_rng(0), []
    for _ in range(20):
        needles = batches._needles(2048, rng, first=False)
        assert {quiz.kind for quiz in needles} == {"single"}
        assert len({quiz.question for quiz in needles}) == len(needles)
        assert sum(map(batches.text.planter.size, needles)) <= 0.8 * 2048
        words = [word for quiz in needles for word in quiz.question.split() if word in batches.keys.words]
        shared.append(len(words) / len(set(words)))
    assert min(shared) < 1.3 and max(shared) > 2


def test_the_share_of_needles_alone_is_as_asked(batches: LongBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "config", replace(CONFIG, needle_share=1.0, plain_share=0.0, quote_share=0.0))
    monkeypatch.setattr(batches, "_quizzes", None)
    assert all(batches.document(5, index).kind == "planted" for index in range(20))


def test_midtraining_writes_a_model_that_has_learnt(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = midtrain(replace(CONFIG, num_tokens=6000, lengths=(512,)), tiny_folder, tiny_data, tmp_path / "out")
    lineage = read_lineage(out)
    assert lineage["stage"] == "midtrain"
    before, after = load(tiny_folder).transformer, load(out).transformer
    assert not torch.equal(before.layers[3].attention.qkv.weight.float(), after.layers[3].attention.qkv.weight.float())
    short = lineage["short_text"]
    assert short["bytes"] > 1000 and 0 < short["after"] < short["before"]  # a random model learns from anything


def test_a_data_folder_that_holds_no_text_out_is_refused_before_the_training(
    tiny_folder: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "first_texts", lambda *_: {})
    monkeypatch.setattr("herd.stages.midtrain.train_language", None)
    with pytest.raises(HerdError, match="holds no text out"):
        midtrain(CONFIG, tiny_folder, tiny_data, tmp_path / "out")


def test_the_checkpoint_stays_until_all_facts_of_a_folder_are_written(tiny_folder: Path, tmp_path: Path) -> None:
    def fails(_: Path) -> dict[str, Any]:
        raise HerdError("no")

    stage = Stage("midtrain", tmp_path / "out", config=CONFIG, parents={})
    (stage.work / "state").mkdir(parents=True)
    with pytest.raises(HerdError):
        save_model(huggingface.load(tiny_folder), Tokenizer.load(tiny_folder), stage, facts=fails)
    assert (stage.work / "state").is_dir()


def test_a_trained_model_keeps_the_sampling_of_the_folder_it_began_with(tiny_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    settings = read_json(model / "generation_config.json") | {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    write_json(model / "generation_config.json", settings)
    stage = Stage("sft", tmp_path / "out", config={}, parents={"model": model})
    out = save_model(huggingface.load(model), Tokenizer.load(model), stage)
    assert read_json(out / "generation_config.json") == settings


def losses(config: MidtrainConfig, model: Path, data: Path, out: Path) -> list[float]:
    """Of each step, as `midtrain` trains but in fp32."""
    ranks = Parallel(Mesh(config.parallel))
    network = huggingface.load(model, dtype=torch.float32).requires_grad_(True)
    assert network.vision is not None
    network.vision.requires_grad_(False)
    ranks.apply(network)
    batches = LongBatches(data, config, Tokenizer.load(model), ImageProcessor(network.config.vision))
    stage = Stage("midtrain", out, config=config, parents={})
    train_language(network, batches, config, stage, ranks)
    return [line["loss"] for line in read_metrics(stage.work / "metrics.jsonl")]


@pytest.mark.slow
def test_documents_cut_over_two_context_ranks_have_the_losses_of_one(
    tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, num_tokens=3000, lengths=(512, 1024))
    two = replace(config, parallel=ParallelConfig(context=2))
    [[one], [other, _]] = on_ranks(
        (1, losses, (config, tiny_folder, tiny_data, tmp_path / "one")),
        (2, losses, (two, tiny_folder, tiny_data, tmp_path / "two")),
    )
    assert len(one) == 2 and other == pytest.approx(one, abs=1e-4)


@pytest.fixture
def with_books(tiny_data: Path, tmp_path: Path) -> Path:
    """The data folder with two books, one of them too short for the lengths."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in tiny_data.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "books.parquet").unlink()
    texts = ["\n".join(f"Line {index} of a book." for index in range(2000)), "A leaf."]
    rows = [{"source": "book", "language": "en", "text": text} for text in texts]
    tables.write(folder / "books.parquet", rows, tables.BOOKS)
    return folder


def test_a_stretch_of_a_book_keeps_its_order_and_never_leaves_it(with_books: Path) -> None:
    tokenizer = Tokenizer.load(with_books / "tokenizer")
    config = replace(CONFIG, lengths=(512,), plain_share=0.99, quote_share=0.0, book_share=1.0)
    batches = LongBatches(with_books, config, tokenizer, ImageProcessor(None))
    samples = [batches.document(0, index) for index in range(8)]
    assert len(batches.text.books) == 1
    [book, _] = [row["text"] for row in tables.read(with_books, "books")]
    texts = {tokenizer.decode(sample.ids[1:].tolist()) for sample in samples if sample.kind == "text"}
    assert len(texts) > 4 and all(text in book for text in texts)


def test_a_folder_without_a_book_of_that_length_is_refused(tiny_data: Path) -> None:
    tokenizer = Tokenizer.load(tiny_data / "tokenizer")
    with pytest.raises(HerdError, match="shorten lengths or set book_share=0"):
        LongBatches(tiny_data, replace(CONFIG, book_share=0.5), tokenizer, ImageProcessor(None))


def test_lengths_that_the_data_cannot_fill_are_refused(tiny_data: Path) -> None:
    config = replace(CONFIG, lengths=(10_000_000,))
    with pytest.raises(HerdError, match="make a larger data folder"):
        LongBatches(tiny_data, config, Tokenizer.load(tiny_data / "tokenizer"), ImageProcessor(None))
