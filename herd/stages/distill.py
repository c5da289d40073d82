"""`herd distill`: pre-training that learns from a teacher's distribution beside the text, weighed token by token.

The teacher is a folder of rows (`herd teach`), or a model that reads every batch in training.
"""

from pathlib import Path

from herd.config import DistillConfig
from herd.core.lineage import Stage, hash_of
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.taught_batches import DistillBatches
from herd.data.loading.teacher_rows import MANIFEST, TeacherFolder
from herd.data.media.image import ImageProcessor
from herd.data.packages.wordings import CLIP, NAME
from herd.data.tokens.shards import tokenizer_hash
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.model.formats.source import find_source
from herd.model.parallel import Parallel, start
from herd.stages.language import heldout_loss, open_model, train_language
from herd.stages.model_folder import report_left_out, save_model
from herd.stages.teach import open_teacher
from herd.train.distillation import distillation_loss
from herd.train.teacher import Teacher

FEW = 0.9
"""A share of tokens with rows below which the cause is named."""


def distill(config: DistillConfig, model: Path, data: Path, teacher: Path, out: Path) -> Path:
    """Train the model folder `model` on documents and pictures, with a teacher's targets; returns the folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("distill", out, config=config, parents={"model": model, "data": data, "teacher": teacher})
    network, tokenizer = open_model(model, config, stage, parallel)
    reader: Teacher | None = None
    rows: TeacherFolder | None = None
    if (teacher / MANIFEST).exists():
        rows = open_rows(teacher, config, data, tokenizer)
    else:
        opened = open_teacher(teacher, network.embedding.weight.dtype, Parallel(parallel.mesh))
        check_tokenizer(tokenizer_hash(find_source(teacher).tokenizer(opened.config.special)), teacher, tokenizer)
        reader = Teacher(opened, shared=parallel.is_distributed)
    processor = ImageProcessor(network.config.vision)
    student = PretrainBatches(data, config, tokenizer, processor, questions=NAME, clip_questions=CLIP)
    left_out = report_left_out(student.left_out, stage, parallel)
    hooks = heldout_loss(network, tokenizer, data, config, parallel)
    loss_fn = distillation_loss(config, parallel, reader)
    batches = DistillBatches(student, config, rows)
    if rows is not None and parallel.first:
        share = batches.share_with_rows()
        print(f"distill: {share:.0%} of the learnt tokens have a teacher's row", flush=True)
        if share < FEW:
            print(
                f"distill: the others are learnt without {teacher}: give herd teach the settings of this training, "
                "num_tokens and the shares of pictures and clips among them",
                flush=True,
            )
    train_language(network, batches, config, stage, parallel, hooks=hooks, loss_fn=loss_fn)
    facts = {**left_out, "packing_waste": round(student.packing_waste, 5)}
    return save_model(network, tokenizer, stage, parallel, facts=lambda _: facts)


def open_rows(teacher: Path, config: DistillConfig, data: Path, tokenizer: Tokenizer) -> TeacherFolder:
    """A teacher's rows. Raises HerdError where they are those of other data, another tokenizer or shorter pieces."""
    rows = TeacherFolder(teacher)
    check_tokenizer(rows.manifest["tokenizer"], teacher, tokenizer)
    read, now = rows.manifest["parents"]["data"], hash_of(data)
    if read != now:
        raise HerdError(
            f"{teacher} has the rows of a data folder with the hash {read[:12]}, {data} has {now[:12]}: give the data "
            "that the teacher read, or teach again"
        )
    if config.context > rows.manifest["context"]:
        raise HerdError(
            f"context={config.context} is longer than the {rows.manifest['context']} tokens of a piece that {teacher} "
            "read: lower it, or teach again with the student's context"
        )
    return rows


def check_tokenizer(of_teacher: str, teacher: Path, tokenizer: Tokenizer) -> None:
    """Raise HerdError where teacher and student number their tokens differently."""
    if of_teacher != (own := tokenizer_hash(tokenizer)):
        raise HerdError(
            f"{teacher} has the tokenizer {of_teacher}, the student has {own}: a student learns from a teacher with "
            "the same tokenizer"
        )
