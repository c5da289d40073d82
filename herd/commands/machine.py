"""What a model costs and what this machine has: `herd plan`, `herd doctor`."""

import sys
from pathlib import Path

from herd.commands.command import load_object
from herd.config import PRESETS, preset
from herd.plan.counts import Precision


def plan(
    model: str,
    /,
    *,
    context: int | None = None,
    quantize: Precision | None = None,
    lora: int | None = None,
    gpus: int | None = None,
    gpu: str = "h100",
    length: int = 8192,
    batch_tokens: int = 2**24,
    tokens: int = 30 * 10**12,
    pipelined: bool = False,
    here: bool = False,
    json: bool = False,
) -> None:
    """Estimate parameters, memory and training cost of a model.

    Args:
        model: A preset's name, the folder of a model, or a config.json.
        context: Tokens of one request, such as 8192, 128K or 10M; as many as the model claims if not given.
        quantize: Precision of weights and cache, bf16 if not given.
        lora: Rank of LoRA adapters: count them, and the memory of their training.
        gpus: Estimate a training run on so many GPUs, with the options below.
        gpu: a100, h100, h800, h200 or b200.
        length: Tokens of a document.
        batch_tokens: Tokens of an optimizer step, over all GPUs.
        tokens: Tokens of the whole run.
        pipelined: Include layouts with pipeline parallelism, which Herd's trainer does not have.
        here: Estimate a step of training on this machine, of --batch-tokens tokens in documents of --length.
        json: Print one JSON object, for scripts.
    """
    is_path = model not in PRESETS and Path(model).exists()
    shape = load_object("herd.model.formats.config_json:config_from_json")(Path(model)) if is_path else preset(model)
    training = None
    if gpus is not None:
        training = load_object("herd.plan.training:TrainingPlan")(
            gpus=gpus,
            gpu=gpu,
            length=length,
            batch_tokens=batch_tokens,
            tokens=tokens,
            pipelined=pipelined,
        )
    machine = load_object("herd.bench.plan:this_machine")() if here else None
    load_object("herd.plan.show:show")(
        model,
        shape,
        context=context,
        quantize=quantize,
        lora=lora,
        training=training,
        here=None if machine is None else (batch_tokens, length, machine),
        as_json=json,
    )


def doctor(*, json: bool = False) -> None:
    """Check this machine and suggest fixes.

    Args:
        json: Print one JSON object, for scripts.
    """
    sys.exit(load_object("herd.doctor:doctor")(as_json=json))
