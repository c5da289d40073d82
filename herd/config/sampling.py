"""How answers are drawn: the options of `herd chat` and `generate`. A request may ask for more: `SamplingParams`."""

from dataclasses import dataclass

from herd.errors import HerdError

MAX_STOPS = 16


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Names are vLLM's."""

    max_tokens: int = 128
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0: always the likeliest token; 1: draw from the model's own distribution."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together hold this share of the probability; 0: the likeliest alone."""
    top_k: int = 0
    """Draw among so many likeliest tokens; 0: all."""
    min_p: float = 0.0
    """Draw among tokens at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: tokens of prompt and answer become less likely."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are left out of its text."""
    seed: int | None = None
    """The same seed gives the same answer; in bf16 what runs beside it may change one (docs/engine.md)."""

    def __post_init__(self) -> None:
        for name, holds, wanted in (
            ("max_tokens", self.max_tokens >= 1, "be at least 1"),
            ("temperature", self.temperature >= 0, "not be negative"),
            ("top_p", 0 <= self.top_p <= 1, "be in [0, 1]"),
            ("top_k", self.top_k >= 0, "not be negative; 0 takes all tokens"),
            ("min_p", 0 <= self.min_p <= 1, "be in [0, 1]"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "be above 0; 1 changes nothing"),
            ("stop", len(self.stop) <= MAX_STOPS and all(self.stop), f"be at most {MAX_STOPS} texts, none empty"),
        ):
            if not holds:
                raise HerdError(f"{name}={getattr(self, name)} must {wanted}")
