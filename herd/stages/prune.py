"""`herd prune`: a smaller model of some of a model's layers and experts, for a student to begin with.

What the parts are worth is measured on training text (herd.model.prune); distillation then repairs what they lack.
"""

from pathlib import Path

from herd.config import PretrainConfig, PruneConfig
from herd.core.batch import to_device
from herd.core.device import choose_device
from herd.core.lineage import Stage
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.media.image import ImageProcessor
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.formats.source import find_source
from herd.model.formats.weights import assemble, skeleton
from herd.model.prune import choose_experts, choose_layers, measure, pruned
from herd.stages.language import trainable_weights
from herd.stages.model_folder import count_parameters


def prune(config: PruneConfig, model: Path, data: Path, out: Path) -> Path:
    """Write the smaller model; returns the finished folder `out`."""
    if config.num_layers is None and config.num_experts is None:
        raise HerdError("nothing would be pruned: give --num-layers, --num-experts or both")
    stage = Stage("prune", out, config=config, parents={"model": model, "data": data})
    source, device = find_source(model), choose_device()
    weights = trainable_weights(source)
    network = assemble(weights, device=device)
    tokenizer = source.tokenizer(network.config.special)
    plan = PretrainConfig(seed=config.seed, num_tokens=config.num_tokens, context=config.context, picture_share=0.0)
    batches = PretrainBatches(data, plan, tokenizer, ImageProcessor(None))
    worth = measure(network, (to_device(batches.batch(step), device) for step in range(batches.num_steps)))
    shape = network.config
    layers = choose_layers(shape, worth.layers, config.num_layers or shape.num_layers)
    kept = config.num_experts or shape.moe.num_experts
    if not shape.moe.top_k <= kept <= shape.moe.num_experts:
        raise HerdError(f"num_experts={kept} must be {shape.moe.top_k} to the {shape.moe.num_experts} of the model")
    experts = {layer: choose_experts(counts, kept) for layer in layers if (counts := worth.experts[layer]) is not None}
    smaller = pruned(weights, layers, experts)
    huggingface.write(smaller, stage.work, dtype=weights.dtype)
    huggingface.save_processor(smaller.config, stage.work, parent=model)
    tokenizer.save(stage.work)
    print(
        f"prune: layers {', '.join(map(str, layers))} of {shape.num_layers}, {kept} of {shape.moe.num_experts} experts"
    )
    return stage.finish(
        parameters=count_parameters(skeleton(smaller.config)),
        layers=layers,
        experts={str(layer): numbers for layer, numbers in experts.items()},
        layer_worth=[round(one, 5) for one in worth.layers],
    )
