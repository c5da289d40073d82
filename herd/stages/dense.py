"""Training an adopted dense model so that it stays one: its routed experts, which say nothing, stay as they are.

Then `herd convert` writes it as a dense Llama for llama.cpp. Models with routed experts that say something are trained
whole, as everywhere.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from herd.config import LORA_TARGETS, LanguageTrainingConfig
from herd.config.training import ALL_OF_LANGUAGE
from herd.model.formats.llama_cpp import is_dense
from herd.model.formats.source import find_source

TRAINABLE = (
    "embedding.*", "norm.*", "unembedding.*", "layers.*.attention*", "layers.*.ffn_norm.*", "layers.*.ffn.shared.*",
)  # fmt: skip
"""All parameters but routers and routed experts."""


def keep_dense(config: Any, model: Path) -> Any:
    """The config of a training that begins with `model`, with the routed experts left out where the model is dense and
    the config does not say what is trained."""
    if not isinstance(config, LanguageTrainingConfig):
        return config
    lora = config.lora.rank is not None
    if (lora and config.lora.targets != LORA_TARGETS) or config.trainable != ALL_OF_LANGUAGE:
        return config
    weights = find_source(model).weights()
    if weights.config.moe.num_experts != 1 or not is_dense(weights):
        return config
    print(f"{model} is a dense model: its routed experts, which give zero, stay so, and it can be written as GGUF")
    if lora:
        targets = tuple(target for target in LORA_TARGETS if target != "experts")
        return replace(config, lora=replace(config.lora, targets=targets))
    return replace(config, trainable=TRAINABLE, bias_update_rate=0.0)
