"""Prints what `herd plan` estimates, as text or as one JSON object."""

import json
from dataclasses import asdict

from herd.config import ModelConfig, OptimizerConfig
from herd.plan.counts import INT4_GROUP, Precision, amount, plan
from herd.plan.here import Machine, step_here
from herd.plan.training import TrainingPlan, training_json, training_lines


def show(
    name: str,
    config: ModelConfig,
    *,
    context: int | None,
    quantize: Precision | None,
    lora: int | None = None,
    training: TrainingPlan | None = None,
    here: tuple[int, int, Machine] | None = None,
    as_json: bool,
) -> None:
    """Print the plan of the model called `name`; of training it too, on a cluster or `here` (step, document)."""
    step = None if here is None else step_here(config, OptimizerConfig(), *here)
    lines = [] if training is None else training_lines(config, training)
    facts = plan(config, context=context, quantize=quantize, lora=lora)
    if as_json:
        more = {} if training is None else {"training": training_json(config, training)}
        more |= {} if step is None else {"here": asdict(step)}
        print(json.dumps({"model": name, **facts, **more}, indent=1))
        return
    figures, weights, fits = facts["parameters"], facts["bytes"], facts["context_on_one_card"]
    assert isinstance(figures, dict) and isinstance(weights, dict) and isinstance(fits, dict)
    parts = [f"{kind} {amount(value)}" for kind, value in figures.items() if value]
    parts.append(f"vision {amount(facts['vision_parameters'])}")
    print(f"{name}: {amount(facts['total_parameters'])} parameters, {amount(facts['active_parameters'])} active")
    print(f"  {', '.join(parts)}")
    print("weights, and the longest request beside them in 80 GB:")
    for precision, size in weights.items():
        longest = fits[precision]
        request = "does not fit" if longest is None else f"{longest:,} tokens"
        if size is None:
            print(f"  {precision:<5} {'-':>10}  widths are no multiples of {INT4_GROUP}")
        else:
            print(f"  {precision:<5} {amount(size):>9}B  {request}")
    cache, packed = (amount(facts[name]) for name in ("cache_bytes", "cache_bytes_int8"))
    print(f"KV cache of {facts['context']:,} tokens in bf16: {cache}B, with the global layers' in int8: {packed}B")
    print(f"together in {facts['precision']}: {amount(facts['serving_bytes'])}B")
    if lora is not None:
        adapters, total = facts["lora"], facts["total_parameters"]
        assert isinstance(adapters, dict) and isinstance(total, int)
        share = adapters["parameters"] / total
        print(
            f"LoRA of rank {lora}: {amount(adapters['parameters'])} trained parameters ({share:.2%}); with the base in "
            f"bf16, gradients, masters and moments {amount(adapters['training_bytes'])}B, activations aside"
        )
    for line in lines:
        print(line)
    if step is not None:
        print(
            f"a step of training here: {step.seconds:.2f} s, {step.tokens_per_s:,.0f} tokens/s, "
            f"{step.share_of_peak:.0%} of the product rate, {amount(int(step.peak_bytes))}B at the peak"
        )
