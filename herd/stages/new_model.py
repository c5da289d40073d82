"""`herd model`: a new model of the shape that was asked for, at its first weights, with the data folder's tokenizer."""

from pathlib import Path

from herd.config import NewModelConfig, preset
from herd.core.lineage import Stage
from herd.data.tokens.tokenizer import Tokenizer
from herd.model.init import first_weights
from herd.stages.model_folder import save_model


def new_model(config: NewModelConfig, data: Path, out: Path) -> Path:
    """Write the model that training begins with; returns the finished folder `out`."""
    stage = Stage("model", out, config=config, parents={"data": data})
    tokenizer = Tokenizer.load(data / "tokenizer")
    base = preset(config.preset, vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
    network = first_weights(config.shape(base), config.seed, qk_init_correlation=config.qk_init_correlation)
    return save_model(network, tokenizer, stage)
