"""First weights. Every matrix keeps the scale of its input; residual branches begin at zero."""

import torch
from torch import nn


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Fill all parameters in place, in the order of their names' definition."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or ("norm_" in name and name.endswith("weight")):
                parameter.fill_(1)
            elif name.endswith(".bias"):
                parameter.zero_()
            elif name.endswith(("out.weight", "down.weight", "down_EFD")) and "adapter" not in name:
                # Residual branches add nothing at first: depth then costs no stability.
                parameter.zero_()
            elif name == "unembedding.weight":
                parameter.zero_()
            elif name == "embedding.weight":
                parameter.normal_(0, 1, generator=generator)
            elif name in {"vision.positions", "vision.class_token"}:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                fan_in = parameter.shape[-2] if name.endswith("EDF") else parameter.shape[-1]
                parameter.normal_(0, fan_in**-0.5, generator=generator)
