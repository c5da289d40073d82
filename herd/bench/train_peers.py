"""The peers of `herd bench train`: transformers' Llama 4, as it comes and compiled, and a minimal model in plain
PyTorch (lean.py).

Parameters, gradients and AdamW's moments in bf16, no masters: that is what they take least of, in time and memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from herd.bench.lean import Lean
from herd.bench.train import Case, Step, random_tokens
from herd.model.formats.config_json import config_to_json


def make_step(parameters: list[torch.nn.Parameter], loss: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_lean(case: Case) -> Step:
    model, tokens = Lean(case.config).to(torch.bfloat16), random_tokens(case)
    targets = tokens.flatten().roll(-1).view_as(tokens)
    return make_step(list(model.parameters()), lambda: model(tokens, targets))


def make_transformers(case: Case, *, compiled: bool) -> Step:
    import transformers

    raw = config_to_json(case.config, torch.bfloat16)
    config = transformers.Llama4TextConfig(**raw)
    config._attn_implementation = "sdpa"
    config.use_cache = False
    model: torch.nn.Module = transformers.Llama4ForCausalLM(config)
    model.to(torch.bfloat16).train()
    tokens = random_tokens(case)
    run = torch.compile(model) if compiled else model
    return make_step(list(model.parameters()), lambda: run(input_ids=tokens, labels=tokens).loss)


def make_eager(case: Case) -> Step:
    return make_transformers(case, compiled=False)


def make_compiled(case: Case) -> Step:
    return make_transformers(case, compiled=True)
