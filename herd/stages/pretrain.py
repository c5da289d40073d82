"""`herd pretrain`: text, pictures and clips fused from the first step, the whole language model learning at once."""

from pathlib import Path

from herd.config import PretrainConfig
from herd.core.lineage import Stage
from herd.data.loading import tables
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.media.image import ImageProcessor
from herd.data.packages.wordings import CLIP, NAME
from herd.model.parallel import Parallel, start
from herd.stages.language import heldout_loss, open_model, train_language
from herd.stages.model_folder import report_left_out, save_model


def pretrain(config: PretrainConfig, model: Path, data: Path, out: Path) -> Path:
    """Train the model folder `model` on documents, pictures and clips; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("pretrain", out, config=config, parents={"model": model, "data": data})
    # By default the encoder is frozen: it has learnt its part, and the language model learns to read it, at three
    # quarters of the cost.
    network, tokenizer = open_model(model, config, stage, parallel)
    processor = ImageProcessor(network.config.vision)
    batches = PretrainBatches(data, config, tokenizer, processor, questions=NAME, clip_questions=CLIP)
    left_out = batches.left_out
    if processor.reads_pictures and not any(videos for _, videos in config.shares) and tables.has(data, "clips"):
        clips = sum(row["split"] == "train" for row in tables.read(data, "clips", ["split"]))
        left_out["clips, which video_share=0 leaves to fine-tuning"] = clips
    left_out = report_left_out(left_out, stage, parallel)
    hooks = heldout_loss(network, tokenizer, data, config, parallel)
    train_language(network, batches, config, stage, parallel, hooks=hooks)
    facts = {**left_out, "packing_waste": round(batches.packing_waste, 5)}
    return save_model(network, tokenizer, stage, parallel, facts=lambda _: facts)
