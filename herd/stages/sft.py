"""`herd sft`: a base model learns to answer, on chats in Llama 4's format or by the folder's own chat template."""

from pathlib import Path

from herd.config import SftConfig
from herd.core.lineage import Stage
from herd.data.loading.sft_batches import SftBatches
from herd.data.media.image import ImageProcessor
from herd.model.parallel import Parallel, start
from herd.stages.language import heldout_loss, open_model, train_language
from herd.stages.model_folder import report_left_out, save_model


def sft(config: SftConfig, model: Path, data: Path, out: Path) -> Path:
    """Fine-tune the model folder `model` on the data folder's chats; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("sft", out, config=config, parents={"model": model, "data": data, **config.inputs()})
    network, tokenizer = open_model(model, config, stage, parallel)
    batches = SftBatches(data, config, tokenizer, ImageProcessor(network.config.vision))
    left_out = report_left_out(batches.left_out, stage, parallel)
    hooks = heldout_loss(network, tokenizer, data, config, parallel)
    train_language(network, batches, config, stage, parallel, hooks=hooks)
    return save_model(network, tokenizer, stage, parallel, facts=lambda _: left_out)
