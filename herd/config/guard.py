"""The settings of `herd guard train`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from herd.config.ranges import Checked, Context, Count, CountOrNone, Share, Weight
from herd.config.training import HOW_IT_RUNS, LanguageTrainingConfig, LossSpikesConfig, OptimizerConfig
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class SafetyConfig(Checked):
    """`[safety]` of a recipe: what it adds to the tables of the stages."""

    demonstrations: Count = 2_800
    """Chats of training in each data folder: three of seven refuse what is unsafe, the others answer a benign twin or a
    harmless request."""
    heldout: Count = 400
    """Held-out questions of either side, in the evaluations that it adds."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig(LanguageTrainingConfig):
    """A guard of messages: the model without its routed experts, fine-tuned to answer safe or unsafe."""

    # Compared by their hashes, as parents are.
    examples: str = field(default="", metadata=HOW_IT_RUNS)
    """JSON lines of yours, each {"messages": […], "unsafe": ["S1"]}, to train on beside the generated items; an empty
    list is safe. Codes are those of S1 to S14 and of `policy`."""
    policy: str = field(default="", metadata=HOW_IT_RUNS)
    """A policy file (TOML) that `examples` are judged by: categories of yours."""
    pictures: str = field(default="", metadata=HOW_IT_RUNS)
    """A data folder with drawings of things (herd data build), for a model that sees: messages of words and drawings
    are trained on too."""
    pictures_share: Share = 0.3
    """Share of the generated messages that have drawings, where there are any."""
    num_layers: CountOrNone = 0
    """Layers that are kept, the first so many; 0: all. What tells safe from unsafe is there in the middle of a
    pre-trained model, and each layer less makes training and use faster."""
    form: Literal["short", "llama-guard"] = "short"
    """The prompt's: that of Llama Guard, or a short one with its instructions before the message; the guard keeps
    it."""
    num_items: Count = 12_000
    """Messages that are trained on in all."""
    batch_items: Count = 48
    """Messages of one optimizer step, all under one policy."""
    naming_share: Share = 0.0
    """Share of the steps, the first, in which three of four generated items are unsafe: a category is learnt from these
    alone, and needs many. Then come all kinds, which show what is safe."""
    mean_with: tuple[str, ...] = field(default=(), metadata=HOW_IT_RUNS)
    """Folders of guards of the same shape, among them maybe the one it begins with: the finished weights are the mean
    of theirs and the trained ones. That keeps more of what a guard knew before (WiSE-FT, arXiv 2109.01903), and of
    several trainings that began alike it is better than each (model soups, arXiv 2203.05482)."""
    examples_share: Share = 0.5
    """Share of them that are yours, where there are examples."""
    context: Context = 768
    """Tokens of the longest message with its policy; longer examples are cut into windows, as in use."""
    threshold: Share = 0.5
    """A message is unsafe from this score on; kept with the guard, which may be asked with another."""
    heldout_items: Count = 600
    """Generated items with held-out actions and wordings on which the finished guard is measured."""
    bias_update_rate: Weight = 0.0
    """Must be 0: a guard has no routers."""
    loss_spikes: LossSpikesConfig = field(default_factory=lambda: LossSpikesConfig(skip=("not_finite",)))
    """Losses are not judged: those of one word are few and large."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            matrix_lr=0.01, embedding_lr=0.01, other_lr=0.004, unembedding_lr=0.004, warmup_ratio=0.05, decay=0.9
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora.rank is not None:
            raise HerdError(
                f"lora.rank={self.lora.rank}: a guard is a model of its own, without routed experts, and not an "
                "adapter: leave lora out"
            )
        if self.bias_update_rate:
            raise HerdError(f"bias_update_rate={self.bias_update_rate}: a guard has no routers, set it to 0")
        if self.policy and not self.examples:
            raise HerdError(f"policy={self.policy} is what examples are judged by: give examples too")

    def inputs(self) -> dict[str, Path]:
        """The user's files, and other guards."""
        found = {"examples": self.examples, "policy": self.policy, "pictures": self.pictures}
        found |= {f"mean_with {number}": folder for number, folder in enumerate(self.mean_with, 1)}
        return {role: Path(place).expanduser() for role, place in found.items() if place}
