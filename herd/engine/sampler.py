"""From logits to the next token."""

# B requests, V vocabulary

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from herd.core.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one answer is drawn."""

    max_tokens: int = 128
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together hold this share of the probability."""
    seed: int | None = None
    """The same seed gives the same answer, whatever else runs."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise HerdError(f"max_tokens={self.max_tokens} must be at least 1")
        if self.temperature < 0:
            raise HerdError(f"temperature={self.temperature} must not be negative")
        if not 0 < self.top_p <= 1:
            raise HerdError(f"top_p={self.top_p} must lie in (0, 1]")


def sample(logits_V: Float[Tensor, "v"], params: SamplingParams, generator: torch.Generator) -> int:
    """One token by `params`; fp32 inside."""
    if params.temperature == 0:
        return int(logits_V.argmax())
    probability_V = torch.softmax(logits_V.float() / params.temperature, dim=-1)
    if params.top_p < 1:
        ordered, index = probability_V.sort(descending=True)
        # A token stays as long as what lies before it has not filled top_p; the first always stays.
        ordered[ordered.cumsum(0) - ordered >= params.top_p] = 0
        probability_V = torch.zeros_like(probability_V).scatter(0, index, ordered)
    return int(torch.multinomial(probability_V, 1, generator=generator))
