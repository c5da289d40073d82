"""The settings of `herd dpo`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from herd.config.ranges import Context, Count, Positive, Range, Share, Weight
from herd.config.training import HOW_IT_RUNS, LanguageTrainingConfig, LossSpikesConfig, OptimizerConfig
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class DpoConfig(LanguageTrainingConfig):
    """Direct preference optimisation on pairs of answers, light: few steps, small rates, and it stops by itself."""

    # Compared by their hashes, as parents are.
    pairs: str = field(default="", metadata=HOW_IT_RUNS)
    """A file, folder or pattern of rows with prompt, chosen and rejected, as TRL has them."""
    run: str = field(default="", metadata=HOW_IT_RUNS)
    """Folder of herd rl, in place of `pairs`: the best and the worst answer of each group in its journal."""
    data: str = field(default="", metadata=HOW_IT_RUNS)
    """Data folder: its preferences are the pairs if neither is given; `heldout_every` reads its held-out text."""
    loss: Literal["sigmoid", "ipo", "robust"] = "sigmoid"
    """`sigmoid`: DPO; `ipo`: a squared distance to a fixed margin, by the token; `robust`: sigmoid, unbiased where the
    share `label_smoothing` of the pairs is the wrong way round."""
    beta: Positive = 0.1
    """How strongly the reference holds: the larger, the nearer the model stays."""
    label_smoothing: Annotated[float, Range(0, 0.5, below=True)] = 0.1
    """Of `robust`."""
    nll: Weight = 5.0
    """Weight of the cross-entropy of the chosen answers' tokens, which keeps them likely, and what they know."""
    batch_pairs: Count = 16
    """Pairs of one optimizer step."""
    epochs: Count = 1
    """Most passes over the pairs."""
    max_steps: Count = 200
    """Most steps."""
    context: Context = 512
    """Tokens of the longest prompt with its answer; pairs with a longer one are left out."""
    heldout: Share = 0.1
    """Share of the prompts of `pairs` or `run` that is held out; a data folder has its own."""
    max_end_drop: Positive = 0.1
    """The training ends when the log-probability of the token that ends a chosen answer has fallen this far below the
    reference's, in nats, as a mean over the last steps."""
    max_kl: Positive = 0.1
    """It ends too when the estimated KL divergence from the reference has passed this, in nats a token."""
    bias_update_rate: Weight = 0.0
    """Must be 0: the routers' choices stay those of the reference."""
    loss_spikes: LossSpikesConfig = field(default_factory=lambda: LossSpikesConfig(skip=("not_finite",)))
    """Losses and norms are not judged: both fall as pairs are learnt."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr_scale=0.02, weight_decay=0.0, warmup_ratio=0.1, decay=0.5)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs and self.run:
            raise HerdError(f"pairs={self.pairs} and run={self.run} are both given: give one of them")
        if self.bias_update_rate:
            raise HerdError(f"bias_update_rate={self.bias_update_rate} would change the routers' choices: set it to 0")

    def inputs(self) -> dict[str, Path]:
        """What is given of pairs, run and data folder."""
        found = {"pairs": self.pairs, "run": self.run, "data": self.data}
        return {role: Path(place).expanduser() for role, place in found.items() if place}
