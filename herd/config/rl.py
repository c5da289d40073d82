"""Settings of online reinforcement learning."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from herd.config.ranges import Checked, Count, CountOrNone, PartialShare, Positive, Share, TrueShare, Weight
from herd.config.rl_loss import PolicyLossConfig
from herd.config.training import HOW_IT_RUNS, LanguageTrainingConfig, LossSpikesConfig, OptimizerConfig
from herd.errors import HerdError

ModeName = Literal["sync", "pinned", "inflight"]
ReplayName = Literal["off", "auto", "on"]


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig(Checked):
    """Which tasks are dealt: of each environment, more of the cells whose pass rate is near a target."""

    uniform: bool = False
    """Deal all cells of an environment equally often: the control that a curriculum is compared with."""
    start_pass_rate: TrueShare = 0.5
    """The target at the start of the run."""
    end_pass_rate: TrueShare = 0.3
    """The target at its end; in between it falls linearly."""
    solved_pass_rate: Share = 0.95
    """Cells above it are solved, and dealt by `explore` and `revisit` alone."""
    explore: Share = 0.1
    """Share of an environment's groups that is spread over all its cells, so that none is given up for good."""
    revisit: Share = 0.05
    """Share that is spread over its solved cells, so that they are not forgotten."""
    forgetting: PartialShare = 0.9
    """What a step leaves of the weight of the answers before it, as the model changes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.explore + self.revisit >= 1:
            raise HerdError(
                f"explore={self.explore} and revisit={self.revisit} leave nothing for the cells near the target: lower "
                "one of them, or set uniform=true"
            )

    def target_at(self, progress: float) -> float:
        """The pass rate that is aimed at when so much of the run, from 0 to 1, is over."""
        return self.start_pass_rate + progress * (self.end_pass_rate - self.start_pass_rate)


@dataclass(frozen=True, kw_only=True)
class RlConfig(LanguageTrainingConfig):
    """Learning from rewards for the model's own answers: see docs/rl.md."""

    environments: tuple[str, ...] = ("digits",)
    """What is asked and graded, each for an equal share of the groups or with its own as in `digits=2`: a task of
    Herd's, some of its cells as in `digits[sort-*]`, a JSONL file of prompts with answers, or your class
    `module:name`; see docs/environments.md."""
    num_steps: Count = 100
    """Updates of the weights."""
    groups: Count = 16
    """Groups that a step is trained on: prompts with several answers each, not all worth the same."""
    group_size: Count = 8
    """Answers to a prompt."""
    max_tokens: Count = 128
    """Longest answer, over all its turns; one that is cut off gets a reward of 0."""
    max_turns: Count = 8
    """Most turns of the model in one answer, in environments that go on."""
    system_prompts: tuple[str, ...] = ()
    """One of these is put before each prompt that has none, drawn by chance; "" for none."""
    mode: ModeName = "sync"
    """`sync`: a step is drawn by the newest weights, and drawing and training take turns; `pinned`: by the weights of
    `lag` steps before, meanwhile, so that the result is a function of the seed; `inflight`: answers go on under new
    weights as soon as there are any."""
    lag: CountOrNone = 1
    """Steps by which the weights that draw may be older than those that are trained; without effect in `sync`."""
    window: Share = 0.3
    """In `inflight`: share of the groups under way by which a finished group may overtake the oldest that is not; 0:
    strict order."""
    advantage: Literal["mean_centred", "maxrl"] = "mean_centred"
    """Reward less the group's mean; or also divided by the mean (MaxRL)."""
    replay: ReplayName = "off"
    """Whether the trainer uses the experts that the engine used for a token, in place of its router's choice: `auto`
    does where the two may differ: in bf16, where quantised weights draw, and where older ones do."""
    exact: bool = False
    """Read the drawn tokens again by the engine's forward at the current weights: the ratio of probabilities then
    differs from 1 by the age of the weights alone; in fp32 it is 1 to the bit where they are the same."""
    teacher: str = field(default="", metadata=HOW_IT_RUNS)
    """Model folder that reads what was drawn; its log-probability less the student's is added to each token's
    advantage (on-policy distillation). None if not given."""
    teacher_weight: Weight = 1.0
    """Factor on that."""
    guard: str = field(default="", metadata=HOW_IT_RUNS)
    """Folder of a guard whose verdicts are rewards: `guard/FOLDER` is one more of the environments."""
    quantize: Literal["none", "int8", "int4", "fp8"] = "none"
    """Weights of the engine that draws, packed again at each update; the correction accounts for what it draws
    differently."""
    slots: Count = 64
    """Answers that the engine draws at a time."""
    kv_cache_memory_bytes: CountOrNone = field(default=0, metadata=HOW_IT_RUNS)
    """Bytes for the engine's keys and values, such as 40G; 0: room for eight answers of 8,192 tokens, or of the model's
    context. Where many are long, fewer are drawn at a time."""
    max_groups: CountOrNone = field(default=0, metadata=HOW_IT_RUNS)
    """Groups that are drawn and graded at a time, where the environment bears no more; 0: no limit."""
    on: Literal["thread", "process", "ray"] = field(default="thread", metadata=HOW_IT_RUNS)
    """Where engine and environments run: beside the training in its process, in `workers` processes of this machine, or
    in as many actors of a Ray cluster, whose machines see the same files."""
    workers: Count = field(default=1, metadata=HOW_IT_RUNS)
    """Engines, with on=process or ray."""
    env_timeout_s: Positive = 60.0
    """Longest wait for an environment's reaction, in seconds; it is asked `env_attempts` times."""
    env_attempts: Count = 3
    """After so many failures the group is dropped, and counted."""
    bias_update_rate: Weight = 0.0
    """As elsewhere; off, so that engine and trainer choose the same experts."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr_scale=0.05, weight_decay=0.0, decay=0.1, warmup_ratio=0.05)
    )
    loss_spikes: LossSpikesConfig = field(default_factory=lambda: LossSpikesConfig(skip=("not_finite", "grad_norm")))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.environments:
            raise HerdError("environments is empty: name one, such as digits")
        if self.group_size < 2:
            raise HerdError("group_size=1 has no answers to compare: set at least 2")
        if self.on == "thread" and self.workers > 1:
            raise HerdError(f"workers={self.workers} need a process each: set on=process, or on=ray")
        if self.bias_update_rate:
            raise HerdError("bias_update_rate is not 0: the engine would choose other experts than the trainer")
        if self.balance_coefficient:
            raise HerdError("balance_coefficient is not 0: the policy gradient has no such term, leave it out")
        if self.replay != "off" and self.exact:
            raise HerdError(
                f"replay={self.replay} with exact: what exact reads is routed anew; set replay=off, or leave exact out"
            )
        if self.lora.rank is not None:
            raise HerdError("lora: the rollouts' engine draws by whole weights: herd merge the adapter, then herd rl")

    def inputs(self) -> dict[str, Path]:
        """The teacher and the guard, if given."""
        found = {"teacher": self.teacher, "guard": self.guard}
        return {role: Path(place).expanduser() for role, place in found.items() if place}

    @property
    def steps_behind(self) -> int:
        """The lag that is in effect."""
        return 0 if self.mode == "sync" else self.lag

    def replays(self, *, narrow: bool) -> bool:
        """Whether routes are replayed; `narrow`: the model computes in less than fp32."""
        may_differ = narrow or self.quantize != "none" or self.steps_behind > 0
        return self.replay == "on" or (self.replay == "auto" and may_differ)

    def shares(self) -> dict[str, float]:
        """The share of each environment, the guard's too."""
        parts = [one.rpartition("=") for one in self.environments]
        weights = {name or share: float(share) if name else 1.0 for name, _, share in parts}
        if self.guard:
            weights[f"guard/{self.guard}"] = 1.0
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}
