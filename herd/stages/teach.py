"""`herd teach`: one pass of a teacher over what its students will be trained on. Of each position a few tokens drawn
from its whole distribution are kept (herd.data.loading.teacher_rows); several students then learn from one pass.

Under torchrun each rank reads its part of every step, and writes its rows to their places. A killed pass goes on with
the step behind the last one that was noted.
"""

import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from herd.config import PARALLEL_AXES, PretrainConfig, PretrainPlan, TeachConfig
from herd.core.batch import to_device
from herd.core.device import choose_device, naming_out_of_memory, send
from herd.core.files import naming_full_disk, read_json, sha256, write_json
from herd.core.lineage import STATE, Stage, hash_of
from herd.core.progress import progress_bar
from herd.core.signals import stop_on_signals
from herd.data.loading.batches import prefetch
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.teach_batches import TeachBatch, TeachBatches, write_index
from herd.data.loading.teacher_rows import FORMAT, INDEX, MANIFEST, RowFiles, pack_rows, row_dtype
from herd.data.media.image import ImageProcessor
from herd.data.packages.wordings import CLIP, NAME
from herd.data.tokens.shards import tokenizer_hash
from herd.errors import Stopped
from herd.model.formats.source import LOW_BIT, find_source
from herd.model.formats.weights import skeleton
from herd.model.parallel import Parallel, start
from herd.model.transformer import Transformer
from herd.stages.language import trainable_weights
from herd.stages.model_folder import report_left_out
from herd.train.dtype import training_dtype
from herd.train.loop import RESUME
from herd.train.teacher import Teacher

PROGRESS = "teach.json"
"""In the folder's state: the steps whose rows are on the disk."""


def open_teacher(folder: Path, dtype: torch.dtype, parallel: Parallel) -> Transformer:
    """A model to be read, on this rank; one process opens any format, and keeps low bits as they are."""
    source, device = find_source(folder), choose_device()
    with naming_out_of_memory("take more ranks (--parallel.shard, --parallel.expert, --parallel.tensor)"):
        if not parallel.is_distributed:
            kept = None if source.kind == LOW_BIT else dtype
            return source.transformer(dtype=kept, device=device).eval().requires_grad_(False)
        weights = trainable_weights(source)
        model = skeleton(weights.config).requires_grad_(False)
        parallel.apply(model)
        parallel.read(model, weights, dtype=dtype, device=device)
        return model.eval()


def student_plan(config: PretrainPlan, seed: int) -> PretrainConfig:
    """The pre-training whose documents and pictures a teacher reads."""
    values = {name: getattr(config, name) for name in PretrainPlan.__dataclass_fields__}
    return PretrainConfig(seed=seed, **values)


def teach(config: TeachConfig, model: Path, data: Path, out: Path) -> Path:
    """Have the model folder `model` read what a student will; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("teach", out, config=config, parents={"model": model, "data": data})
    network = open_teacher(model, training_dtype(config.dtype, stage), parallel)
    tokenizer = find_source(model).tokenizer(network.config.special)
    processor = ImageProcessor(network.config.vision)
    student = PretrainBatches(
        data, student_plan(config, config.seed), tokenizer, processor, questions=NAME, clip_questions=CLIP
    )
    left_out = report_left_out(student.left_out, stage, parallel)
    batches = TeachBatches(student, config)
    vocab_size = tokenizer.vocab_size
    files = RowFiles(stage.work, batches.num_rows, row_dtype(vocab_size, config.draws))
    if parallel.first:
        with naming_full_disk(stage.work):
            files.make()
    parallel.mesh.wait()
    begin = time.monotonic()
    write_rows(network, batches, files, config, stage, parallel, vocab_size)
    if not parallel.first:
        return stage.out
    write_index(stage.work, batches)
    names = [*files.names, *INDEX]
    sizes = {name: {"bytes": (stage.work / name).stat().st_size, "sha256": sha256(stage.work / name)} for name in names}
    manifest = {
        "format": FORMAT,
        "draws": config.draws,
        "vocab_size": vocab_size,
        "tokenizer": tokenizer_hash(tokenizer),
        "context": config.context,
        "rows": batches.num_rows,
        "documents": len(batches.documents_D),
        "pictures": len(batches.pictures.keys),
        "parents": {role: hash_of(path) for role, path in stage.parents.items()},
        "files": sizes,
    }
    write_json(stage.work / MANIFEST, manifest)
    facts = {"rows": batches.num_rows, "bytes_a_row": files.dtype.itemsize}
    print(f"teach: {batches.num_rows:,} rows of {files.dtype.itemsize} bytes, {time.monotonic() - begin:.0f} s")
    return stage.finish(**left_out, **facts)


def write_rows(
    model: Transformer,
    batches: TeachBatches,
    files: RowFiles,
    config: TeachConfig,
    stage: Stage,
    parallel: Parallel,
    vocab_size: int,
) -> None:
    """Read every step that is not noted as done, and write its rows. Raises Stopped when asked to stop."""
    note = stage.work / STATE / PROGRESS
    done = read_json(note)["steps"] if note.exists() else 0
    teacher = Teacher(model, shared=parallel.is_distributed)
    shared = parallel.share(batches, model.config.chunk_size)
    device, saved = model.embedding.weight.device, time.monotonic()

    def save(steps: int) -> None:
        parallel.mesh.wait()  # every rank has written its rows of these steps
        if parallel.first:
            files.sync()
            note.parent.mkdir(exist_ok=True)
            write_json(note, {"steps": steps})
            stage.save_time()

    with (
        stop_on_signals() as request,
        progress_bar(stage.name, batches.num_steps, done=done, quiet=not parallel.first) as bar,
        closing(prefetch(shared, done, request.__bool__)) as steps,
        naming_out_of_memory("take more ranks"),
    ):
        if done and parallel.first:
            bar.print(f"{stage.name}: resumes after step {done} of {batches.num_steps}")
        for step, coming in steps:
            # All ranks leave at the same step.
            asked = parallel.mesh.sum(torch.tensor([float(bool(request))], device=device), PARALLEL_AXES)
            if asked.item():
                save(step)
                raise Stopped(f"stopped as asked, the {step} steps of {batches.num_steps} before are saved: {RESUME}")
            batch = coming.result()
            assert isinstance(batch, TeachBatch)
            learnt = torch.nonzero(batch.weights_N)[:, 0]
            uniforms = send(batch.uniforms_NK[learnt], device)
            rows = teacher.rows(to_device(batch, device), uniforms)
            packed = pack_rows(
                rows.draws_RK.cpu().numpy(),
                rows.logprobs_R.float().cpu().numpy(),
                rows.entropies_R.float().cpu().numpy(),
                vocab_size,
            )
            numbers = batch.rows_N[learnt].numpy()
            with naming_full_disk(stage.work):
                for first, part in consecutive(numbers, packed):
                    files.write(first, part)
            bar.advance()
            if time.monotonic() - saved > config.checkpoint.every_s and not parallel.is_distributed:
                save(step + 1)
                saved = time.monotonic()
            elif parallel.is_distributed and (step + 1) % SAVE_STEPS == 0:
                save(step + 1)
    save(batches.num_steps)


SAVE_STEPS = 64
"""Of several ranks, steps between two notes: their clocks differ."""


def consecutive(numbers_R: np.ndarray, rows_R: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Runs of rows whose numbers follow one another, and the first number of each."""
    cuts = np.flatnonzero(np.diff(numbers_R) != 1) + 1
    firsts = [0, *cuts.tolist()] if len(numbers_R) else []
    return [(int(numbers_R[at]), part) for at, part in zip(firsts, np.split(rows_R, cuts), strict=False)]
