"""`herd pretrain`: text and pictures fused from the first step, the whole language model learning at once."""

from pathlib import Path

from herd.config import PretrainConfig
from herd.core.lineage import Stage
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.media.image import ImageProcessor
from herd.data.packages.wordings import NAME
from herd.model.parallel import Parallel, start
from herd.stages.language import heldout_loss, open_model, train_language
from herd.stages.model_folder import report_left_out, save_model


def pretrain(config: PretrainConfig, model: Path, data: Path, out: Path) -> Path:
    """Train the model folder `model` on documents and pictures; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("pretrain", out, config=config, parents={"model": model, "data": data})
    # By default the encoder is frozen: it has learnt its part, and the language model learns to read it, at three
    # quarters of the cost.
    network, tokenizer = open_model(model, config, stage, parallel)
    batches = PretrainBatches(data, config, tokenizer, ImageProcessor(network.config.vision), questions=NAME)
    left_out = report_left_out(batches.left_out, stage, parallel)
    hooks = heldout_loss(network, tokenizer, data, config, parallel)
    train_language(network, batches, config, stage, parallel, hooks=hooks)
    facts = {**left_out, "packing_waste": round(batches.packing_waste, 5)}
    return save_model(network, tokenizer, stage, parallel, facts=lambda _: facts)
