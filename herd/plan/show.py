"""Prints what `herd plan` reckons, as text or as one JSON object."""

import json

from herd.config import ModelConfig
from herd.plan.counts import INT4_GROUP, Precision, amount, plan
from herd.plan.training import TrainingPlan, training_json, training_lines


def show(
    name: str,
    config: ModelConfig,
    *,
    context: int | None,
    quantize: Precision | None,
    training: TrainingPlan | None,
    as_json: bool,
) -> None:
    """Print the plan of the model called `name`, and of training it."""
    lines = [] if training is None else training_lines(config, training)
    told = plan(config, context=context, quantize=quantize)
    if as_json:
        more = {} if training is None else {"training": training_json(config, training)}
        print(json.dumps({"model": name, **told, **more}, indent=1))
        return
    figures, weights, fits = told["parameters"], told["bytes"], told["context_on_one_card"]
    assert isinstance(figures, dict) and isinstance(weights, dict) and isinstance(fits, dict)
    parts = [f"{kind} {amount(value)}" for kind, value in figures.items() if value]
    parts.append(f"vision {amount(told['vision_parameters'])}")
    print(f"{name}: {amount(told['total_parameters'])} parameters, {amount(told['active_parameters'])} active")
    print(f"  {', '.join(parts)}")
    print("weights, and the longest request beside them in 80 GB:")
    for precision, size in weights.items():
        room = fits[precision]
        told_room = "does not fit" if room is None else f"{room:,} tokens"
        if size is None:
            print(f"  {precision:<5} {'-':>10}  widths are no multiples of {INT4_GROUP}")
        else:
            print(f"  {precision:<5} {amount(size):>9}B  {told_room}")
    cache, packed = (amount(told[name]) for name in ("cache_bytes", "cache_bytes_int8"))
    print(f"KV cache of {told['context']:,} tokens in bf16: {cache}B, with the global layers' in int8: {packed}B")
    print(f"together in {told['precision']}: {amount(told['serving_bytes'])}B")
    for line in lines:
        print(line)
