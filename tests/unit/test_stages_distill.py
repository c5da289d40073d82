"""Rows hold what the teacher gives, whoever reads them; a student learns from its own teacher's and from no others."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from herd.config import DistillConfig, OptimizerConfig, PretrainConfig, TeachConfig
from herd.core.batch import KINDS
from herd.core.lineage import read_lineage
from herd.core.tracker import read_metrics
from herd.data.loading import teach_batches, teacher_rows
from herd.data.loading.pack import Sample, pack
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.taught_batches import DistillBatches, TaughtBatch
from herd.data.loading.teach_batches import TeachBatches
from herd.data.loading.teacher_rows import TeacherFolder, draws_of, pack_rows, uniforms
from herd.data.packages.wordings import CLIP, NAME
from herd.engine.load import Model, load
from herd.errors import HerdError, Stopped
from herd.stages.distill import distill
from herd.stages.teach import student_plan, teach
from herd.train.teacher import Teacher, draw

PLAN = {"num_tokens": 6000, "context": 64, "picture_share": 0.3, "video_share": 0.1}
TEACH = TeachConfig(dtype="float32", draws=5, batch_tokens=1000, **PLAN)
STUDENT = DistillConfig(
    dtype="float32", batch_tokens=1000, optimizer=OptimizerConfig(decay=0.5), alpha=0.9, alpha_schedule="linear",
    confidence=True, **PLAN,
)  # fmt: skip


@pytest.fixture(scope="module")
def taught(tiny_folder: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of a teacher."""
    return teach(TEACH, tiny_folder, tiny_data, tmp_path_factory.mktemp("taught") / "rows")


def plan_of(config: PretrainConfig, data: Path, folder: Path) -> PretrainBatches:
    model = load(folder)
    return PretrainBatches(data, config, model.tokenizer, model.processor, questions=NAME, clip_questions=CLIP)


def batches_of(config: DistillConfig, data: Path, folder: Path, rows: Path) -> DistillBatches:
    return DistillBatches(plan_of(config, data, folder), config, TeacherFolder(rows))


def test_rows_have_what_the_teacher_gives_for_the_students_own_pieces(
    tiny_folder: Path, tiny_data: Path, taught: Path
) -> None:
    teacher, folder = load(tiny_folder, dtype=torch.float32), TeacherFolder(taught)
    student = plan_of(student_plan(TEACH, 0), tiny_data, tiny_folder)
    seen = {"text": 0, "picture": 0, "video": 0}
    for step in range(4):
        plan, places = student.step_places(step)
        for place, sample in zip(places, student.samples(step), strict=True):
            logits = teacher.transformer.unembed(hidden(teacher, sample))
            log = torch.log_softmax(logits, -1).detach()
            learnt = np.flatnonzero(sample.learnt[1:])
            stretch = student.stretch(plan, place)
            if stretch is None:
                rows = folder.picture(student.shown_key(plan, place), len(learnt))
            else:
                rows = folder.text(*stretch, len(learnt))
            assert rows is not None
            gold = log[learnt, sample.ids[learnt + 1].astype(np.int64)]
            assert torch.allclose(torch.from_numpy(rows["logprob"].astype(np.float32)), gold, atol=0.02)
            entropy = -(log.exp() * log).sum(-1)[learnt]
            assert torch.allclose(torch.from_numpy(rows["entropy"].astype(np.float32)), entropy, atol=0.02)
            if stretch is not None:
                first = int(np.load(taught / teacher_rows.TEXT)[stretch[0]]) + stretch[1]
                numbers = uniforms(teach_batches.seed_of(0, "draws"), first, len(learnt), TEACH.draws)
                own = draw(log[learnt].exp(), torch.from_numpy(numbers)).numpy()
                assert (own == draws_of(rows)).mean() > 0.99  # a number next to an edge
            seen[sample.kind] += 1
    assert min(seen.values()) > 0


def hidden(teacher: Model, sample: Sample) -> torch.Tensor:
    """The teacher's hidden states of one sample, read alone."""
    batch = pack([sample], patch_id=teacher.tokenizer.ids.patch)
    with torch.no_grad():
        return teacher.transformer(
            batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images
        )


def rows_by_place(batches: DistillBatches) -> dict[object, bytes]:
    """What a student reads of each document's position and each picture, in the order of the batch's tokens."""
    found: dict[object, bytes] = {}
    for step in range(batches.num_steps):
        batch = batches.batch(step)
        assert isinstance(batch, TaughtBatch)
        learnt = torch.nonzero(batch.weights_N)[:, 0]
        assert not batch.teacher_logprobs_N[learnt].isnan().any()
        assert batch.teacher_logprobs_N[batch.weights_N == 0].isnan().all()
        plan, places = batches.student.step_places(step)
        begin = 0
        for place, sample in zip(places, batches.student.samples(step), strict=True):
            here = begin + np.flatnonzero(sample.learnt[1:])
            begin += len(sample.ids)
            key = batches.student.stretch(plan, place) or batches.student.shown_key(plan, place)
            found[key] = batch.draws_NK[here].numpy().tobytes() + batch.teacher_logprobs_N[here].numpy().tobytes()
    return found


def test_another_batch_size_reads_the_same_rows(tiny_folder: Path, tiny_data: Path, taught: Path) -> None:
    one, other = (
        batches_of(replace(STUDENT, batch_tokens=size), tiny_data, tiny_folder, taught) for size in (1000, 700)
    )
    assert one.num_steps != other.num_steps
    assert rows_by_place(one) == rows_by_place(other)


def test_later_epochs_find_the_rows_of_documents_and_other_views_of_pictures_have_none(
    tiny_folder: Path, tiny_data: Path, taught: Path
) -> None:
    """A longer run shows every document again, cut at other places, and pictures in other views."""
    batches = batches_of(replace(STUDENT, num_tokens=60_000), tiny_data, tiny_folder, taught)
    known = {"text": 0.0, "picture": 0.0}
    counted = dict(known)
    for step in range(batches.num_steps):
        batch = batches.batch(step)
        for kind in known:
            rows = (batch.weights_N != 0) & (batch.kinds_N == KINDS.index(kind))
            known[kind] += float((~batch.teacher_logprobs_N[rows].isnan()).sum())
            counted[kind] += float(rows.sum())
    assert known["picture"] == 0 < counted["picture"]
    assert 0 < known["text"] < counted["text"]


def test_a_student_learns_with_hard_targets_in_the_end(
    tiny_folder: Path, tiny_data: Path, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = distill(STUDENT, tiny_folder, tiny_data, taught, tmp_path / "student")
    reported = capsys.readouterr().out
    assert "100% of the learnt tokens have a teacher's row" in reported and "herd teach" not in reported
    lines = read_metrics(out / "metrics.jsonl")
    alphas = [line.get("alpha") for line in lines]
    half = -(-len(lines) // 2)
    assert all(alpha is not None and 0 < alpha < 0.9 for alpha in alphas[:half])
    assert alphas[half:] == [None] * len(alphas[half:])
    assert all(line["taught"] == 1 for line in lines[:half])
    assert set(read_lineage(out)["parents"]) == {"model", "data", "teacher"}


def test_few_rows_are_reported_with_the_cause(tiny_folder: Path, tiny_data: Path, taught: Path) -> None:
    batches = batches_of(replace(STUDENT, num_tokens=60_000), tiny_data, tiny_folder, taught)
    assert 0 < batches.share_with_rows() < 0.5


def test_rows_and_unfinished_work_are_no_models(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(HerdError, match=r"rows is no model: herd teach wrote it, for --teacher of herd distill"):
        load(taught)
    (tmp_path / "sft.partial").mkdir()
    with pytest.raises(HerdError, match=r"is unfinished work, run the command that began it again: it writes .*/sft"):
        load(tmp_path / "sft.partial")


def test_a_model_may_be_the_teacher_itself(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    """The student begins as the teacher: both are as sure of each token, so every share is half of alpha."""
    config = replace(STUDENT, alpha_schedule="constant", num_tokens=2000, online_draws=3)
    out = distill(config, tiny_folder, tiny_data, tiny_folder, tmp_path / "student")
    first = read_metrics(out / "metrics.jsonl")[0]
    assert first["alpha"] == pytest.approx(0.45, abs=1e-4)
    assert first["taught"] == 1


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_a_teacher_that_was_stopped_goes_on_and_writes_the_same(
    asked: int, tiny_folder: Path, tiny_data: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(teach_batches, "READ_TOKENS", 1500)
    whole = teach(TEACH, tiny_folder, tiny_data, tmp_path / "whole")
    read, calls = Teacher.rows, []

    def stopping(*args):
        calls.append(args)
        if len(calls) == asked + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(*args)

    monkeypatch.setattr(Teacher, "rows", stopping)
    with pytest.raises(Stopped, match="re-run the same command to resume"):
        teach(TEACH, tiny_folder, tiny_data, tmp_path / "stopped")
    monkeypatch.setattr(Teacher, "rows", lambda *args: calls.append(args) or read(*args))
    stopped = teach(TEACH, tiny_folder, tiny_data, tmp_path / "stopped")
    steps = TeachBatches(plan_of(student_plan(TEACH, 0), tiny_data, tiny_folder), TEACH).num_steps
    assert asked + 1 < len(calls) == steps
    assert f"teach: resumes after step {asked + 1} of {steps}\n" in capsys.readouterr().err
    for name in ("rows-00000.bin", *teacher_rows.INDEX):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name


def test_what_is_not_the_students_is_refused(tiny_folder: Path, tiny_data: Path, taught: Path, tmp_path: Path) -> None:
    def refused(match: str, config: DistillConfig = STUDENT, data: Path = tiny_data, teacher: Path = taught) -> None:
        with pytest.raises(HerdError, match=match):
            distill(config, tiny_folder, data, teacher, tmp_path / "out")

    refused("context=128 is longer than the 64 tokens of a piece", replace(STUDENT, context=128))
    changed = tmp_path / "data"
    shutil.copytree(tiny_data, changed)
    lineage = (changed / "herd.json").read_text()
    (changed / "herd.json").write_text(lineage.replace(read_lineage(changed)["hash"], "0" * 64))
    refused("rows of a data folder with the hash .* has 000000000000", data=changed)
    cut = tmp_path / "cut"
    shutil.copytree(taught, cut)
    with (cut / "rows-00000.bin").open("ab") as file:
        file.truncate(100)
    refused("rows-00000.bin has 100 bytes instead of", teacher=cut)
    other = tmp_path / "other"
    shutil.copytree(taught, other)
    manifest = (other / "teacher.json").read_text()
    (other / "teacher.json").write_text(manifest.replace(TeacherFolder(taught).manifest["tokenizer"], "f" * 16))
    refused("has the tokenizer ffffffffffffffff, the student has", teacher=other)


def test_alpha_that_would_be_zero_throughout_is_refused() -> None:
    with pytest.raises(HerdError, match="alpha_schedule"):
        DistillConfig(alpha_schedule="linear", optimizer=OptimizerConfig(decay=1.0, warmup_ratio=0.0))


@pytest.mark.parametrize(("vocab_size", "size"), [(8192, 28), (202_048, 40)])
def test_a_row_has_the_bytes_that_are_promised_and_gives_its_ids_back(vocab_size: int, size: int) -> None:
    draws = np.random.default_rng(0).integers(0, vocab_size, size=(50, 12))
    draws[0, :2] = 0, vocab_size - 1
    rows = pack_rows(draws, np.zeros(50), np.zeros(50), vocab_size)
    assert rows.dtype.itemsize == size
    assert (draws_of(rows) == draws).all()


def test_numbers_of_a_row_do_not_depend_on_how_many_are_asked_for() -> None:
    for count in (1, 4, 5, 12):
        whole = uniforms(7, 0, 20, count)
        assert (uniforms(7, 13, 4, count) == whole[13:17]).all()
        assert len(np.unique(whole)) == whole.size
