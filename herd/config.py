"""Shapes of models and settings of stages: frozen dataclasses, no torch.

Presets: `tiny` is what `herd run tiny` raises in minutes on two cores. `scout` and `maverick` are the published shapes,
`behemoth` one of our own with the published counts; `tiny-scout`, `tiny-maverick` and `tiny-behemoth` are their kin,
with the same kinds of layers in a few megabytes. `herd plan PRESET` counts any of them.
"""

from dataclasses import dataclass, field, replace
from math import gcd
from typing import Literal

from herd.core.errors import HerdError, unknown

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "ja", "zh", "vi", "id", "hi", "ar")
"""The languages of the tiny herd, ISO 639-1."""

PAGE_TOKENS = 64
"""Most tokens in a page of keys and values."""


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Routed experts beside one shared expert."""

    num_experts: int
    ffn_dim: int
    """Hidden width of every routed expert and of the shared one."""
    top_k: int = 1
    """Experts a token visits."""
    every: int = 1
    """1: all layers are mixtures (Scout); 2: every second one, the others are dense (Maverick)."""

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise HerdError(f"top_k={self.top_k} is not between 1 and num_experts={self.num_experts}")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3-type scaling of the rotary frequencies; Scout uses factor 16, low = high = 1, original 8192."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The encoder of one square tile, and how its patches become tokens of the text model."""

    image_size: int
    """Side of a tile in pixels."""
    patch_size: int
    dim: int
    num_layers: int
    num_heads: int
    adapter_dim: int
    """Width of the adapter after the pixel shuffle."""
    max_tiles: int = 16
    """Most tiles that one picture is cut into, the global tile aside."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.image_size % (2 * self.patch_size):
            raise HerdError(
                f"image_size={self.image_size} must be a multiple of twice patch_size={self.patch_size}: "
                "the pixel shuffle joins 2 x 2 patches"
            )
        if self.dim % (4 * self.num_heads):
            raise HerdError(f"vision dim={self.dim} is not divisible by 4 x num_heads={self.num_heads}")

    @property
    def mlp_dim(self) -> int:
        # transformers takes the adapter's input width (4 x dim after the shuffle) from `intermediate_size`.
        return 4 * self.dim

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        return (self.grid // 2) ** 2


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Ids of the tokens that the model's folder must name in config.json."""

    bos: int
    end_of_text: int
    eom: int
    eot: int
    pad: int
    image_start: int | None = None
    """This and the following: None in a model of text alone."""
    image_end: int | None = None
    patch: int | None = None

    @property
    def stop(self) -> tuple[int, ...]:
        """Generation ends at any of these, each told once."""
        return tuple(dict.fromkeys((self.end_of_text, self.eom, self.eot)))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama 4 transformer: chunked RoPE layers, every `nope_every`-th layer global without positions."""

    vocab_size: int
    special: SpecialIds
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dense_ffn_dim: int
    """Hidden width of the feed-forward in layers that are no mixtures."""
    moe: MoEConfig
    vision: VisionConfig | None
    """None: a model of text alone."""
    nope_every: int = 4
    """Every how many layers one has no positions; more than `num_layers`: none has, all turn by RoPE."""
    chunk_size: int = 8192
    """Positions that a RoPE layer sees at most: the token's own block, `position // chunk_size`."""
    qk_norm: bool = True
    temperature: bool = True
    """Whether global layers scale queries by 1 + temperature_scale * ln(floor((pos + 1) / temperature_floor) + 1)."""
    temperature_floor: int = 8192
    temperature_scale: float = 0.1
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    max_positions: int = 262_144
    """Context that the folder claims, in tokens."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise HerdError(f"num_heads={self.num_heads} is not divisible by num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise HerdError(f"head_dim={self.head_dim} is odd: RoPE turns pairs")

    @property
    def page_tokens(self) -> int:
        """Tokens in a page of keys and values: a divisor of the chunk, so that a page ends wherever a chunk does."""
        return gcd(PAGE_TOKENS, self.chunk_size)

    def is_global(self, layer: int) -> bool:
        """Whether the layer attends to the whole past, without positions (NoPE)."""
        return (layer + 1) % self.nope_every == 0

    def is_moe(self, layer: int) -> bool:
        return (layer + 1) % self.moe.every == 0


def tiny(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """The shape that two cores raise in minutes: iRoPE 3 + 1, 8 experts in every layer, tiles of 64 px."""
    return ModelConfig(
        vocab_size=vocab_size,
        special=special,
        dim=192,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        dense_ffn_dim=768,
        moe=MoEConfig(num_experts=8, ffn_dim=384),
        vision=VisionConfig(
            image_size=64, patch_size=16, dim=128, num_layers=4, num_heads=4, adapter_dim=256, max_tiles=4
        ),
        chunk_size=256,
        temperature_floor=256,
        max_positions=4096,
    )


RELEASED_VOCAB = 202_048
"""Tokens of the released models: 200,000 of BPE and 2,048 special ones."""
RELEASED_IDS = SpecialIds(
    bos=200_000,
    end_of_text=200_001,
    eom=200_007,
    eot=200_008,
    pad=200_018,
    image_start=200_080,
    image_end=200_081,
    patch=200_092,
)
RELEASED_VISION = VisionConfig(image_size=336, patch_size=14, dim=1408, num_layers=34, num_heads=16, adapter_dim=4096)


def scout(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """Llama 4 Scout: 108.64 B parameters, of which a token of text meets 17.17 B. Source: its params.json."""
    return ModelConfig(
        vocab_size=vocab_size,
        special=special,
        dim=5120,
        num_layers=48,
        num_heads=40,
        num_kv_heads=8,
        head_dim=128,
        dense_ffn_dim=16_384,
        moe=MoEConfig(num_experts=16, ffn_dim=8192),
        vision=RELEASED_VISION,
        rope_scaling=RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=8192),
        max_positions=10_485_760,
    )


def maverick(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """Llama 4 Maverick: 401.58 B parameters, of which a token of text meets 17.18 B. Source: its params.json."""
    return replace(
        scout(vocab_size, special),
        moe=MoEConfig(num_experts=128, ffn_dim=8192, every=2),
        qk_norm=False,
        rope_scaling=None,
        max_positions=1_048_576,
    )


def behemoth(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """A shape of our own with what was published of Llama 4 Behemoth: 16 experts, 288 B active, about 2 T in all.

    Its width, depth and all else are unpublished. A mixture in every layer, as in Scout: 287.98 B and 1.97 T.
    """
    return replace(
        scout(vocab_size, special),
        dim=14_336,
        num_layers=124,
        num_heads=112,
        num_kv_heads=16,
        dense_ffn_dim=41_984,
        moe=MoEConfig(num_experts=16, ffn_dim=20_992),
        rope_scaling=None,
        max_positions=262_144,
    )


def tiny_scout(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """Scout's kin: a mixture of 16 in every layer, QK norm, scaled RoPE; chunks of 256 and a claim of 1280 chunks."""
    return replace(
        tiny(vocab_size, special),
        dim=256,
        moe=MoEConfig(num_experts=16, ffn_dim=384),
        rope_scaling=RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=256),
        max_positions=327_680,
    )


def tiny_maverick(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """Maverick's kin: a mixture of 128 in every second layer, no QK norm, plain RoPE; a claim of 128 chunks."""
    return replace(
        tiny(vocab_size, special),
        dim=256,
        moe=MoEConfig(num_experts=128, ffn_dim=384, every=2),
        qk_norm=False,
        max_positions=32_768,
    )


def tiny_behemoth(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """Behemoth's kin: 16 experts as in tiny-scout, twice its depth and width; a claim of 32 chunks."""
    return replace(
        tiny(vocab_size, special),
        dim=512,
        num_layers=8,
        num_heads=8,
        dense_ffn_dim=2048,
        moe=MoEConfig(num_experts=16, ffn_dim=1024),
        max_positions=8192,
    )


def tiny_long(vocab_size: int, special: SpecialIds) -> ModelConfig:
    """One local layer under a global one, of text alone: what it costs to read a token does not grow with the context.

    The queries' temperature must grow at least as the logarithm of the context does: its
    slope is thrice Llama 4's, from 256 tokens on.
    """
    return replace(
        tiny(vocab_size, special),
        dim=128,
        num_layers=2,
        nope_every=2,
        moe=MoEConfig(num_experts=4, ffn_dim=256),
        vision=None,
        chunk_size=1024,
        temperature_scale=0.3,
        max_positions=11_534_336,
    )


PRESETS = {
    "tiny": tiny,
    "scout": scout,
    "maverick": maverick,
    "behemoth": behemoth,
    "tiny-scout": tiny_scout,
    "tiny-maverick": tiny_maverick,
    "tiny-behemoth": tiny_behemoth,
    "tiny-long": tiny_long,
}


def preset(name: str, *, vocab_size: int = RELEASED_VOCAB, special: SpecialIds = RELEASED_IDS) -> ModelConfig:
    """The model shape called `name`, for a tokenizer of `vocab_size` tokens; the released one unless told."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name](vocab_size, special)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How much of what goes into a data folder."""

    english_bytes: int = 3_000_000
    """Text in English, held-out part included."""
    other_bytes: int = 450_000
    """Text in each other language; Arabic and Hindi have hardly more."""
    heldout: float = 0.04
    """Share of each language's text that is held out."""
    heldout_bytes: int = 60_000
    """Least text held out in each language (but never more than a fifth)."""
    picture_px: int = 336
    """Longest side of a picture; smaller ones stay as they are."""
    heldout_subjects: float = 0.15
    """Share of stamps, of emoji (in their second style) and of clips kept for evaluation."""
    heldout_pairs: float = 0.1
    """Share of country and language pairs, of problems and of dialogues kept for evaluation."""
    clips: int = 150
    names: int = 12_000
    """Training questions for the name of a picture; the following count training rows likewise."""
    captions: int = 2_000
    flags: int = 3_000
    capitals: int = 3_000
    sums: int = 2_400
    tasks: int = 1_600
    dialogues: int = 4_000
    clip_names: int = 1_200
    vocab_size: int = 8_192
    """Tokens, the special ones included."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("heldout", "heldout_subjects", "heldout_pairs"):
            if not 0 < getattr(self, name) < 1:
                raise HerdError(f"{name}={getattr(self, name)} is not a share between 0 and 1")
        for name, least in (
            ("english_bytes", 10_000),
            ("other_bytes", 10_000),
            ("picture_px", 64),
            ("vocab_size", 300),
        ):
            if getattr(self, name) < least:
                raise HerdError(f"{name}={getattr(self, name)} is too small: at least {least}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Muon or AdamW for matrices, AdamW for the rest; warm-up, plateau, linear decay to zero."""

    matrix: Literal["muon", "adamw"] = "muon"
    """What steps the matrices of the layers."""
    moments: Literal["fp32", "8bit"] = "fp32"
    """How AdamW keeps its moments, but for norms and routers: 8 or 2 bytes for each weight."""
    matrix_lr: float = 0.02
    """Muon's step, as the root mean square of an update relative to sqrt(max(1, rows / columns))."""
    adamw_lr: float = 0.002
    """AdamW's step for the matrices of the layers, where it has them."""
    embedding_lr: float = 0.03
    other_lr: float = 0.01
    """AdamW's step for norms, biases, positions and the router."""
    unembedding_lr: float = 0.008
    weight_decay: float = 0.01
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.02
    """Share of the steps with a rising rate."""
    decay: float = 0.5
    """Share of the steps with a falling rate."""
    max_grad_norm: float = 1.0


HOW_IT_RUNS = {"changes the result": False}
"""Metadata of a field that may differ between the attempts of one stage."""

PARALLEL_AXES = ("replicate", "shard", "expert", "context", "tensor")
"""In the order in which ranks are numbered: those along the last are neighbours."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How many ranks share the work along each axis; their product is the number of processes, see docs/train.md."""

    replicate: int = 1
    """Ranks with all parameters and their own documents."""
    shard: int = 1
    """Ranks with their own documents that keep a part of every parameter and gather it for use (FSDP)."""
    expert: int = 1
    """Ranks with their own documents, each keeping some of every layer's experts."""
    context: int = 1
    """Ranks that share the documents, each taking a part of the tokens."""
    tensor: int = 1
    """Ranks that share the tokens, each taking a part of the heads and of the hidden widths."""

    def __post_init__(self) -> None:
        for axis in PARALLEL_AXES:
            if getattr(self, axis) < 1:
                raise HerdError(f"parallel {axis}={getattr(self, axis)} is no number of ranks: at least 1")

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.replicate * self.shard * self.expert * self.context * self.tensor


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of a training is saved, and what is kept of it."""

    every_s: float = 60.0
    """Seconds from one save to the next; one that is still being written is waited for."""
    keep: int = 2
    """The newest so many are kept: should one be damaged, the one before serves."""
    keep_every: int = 0
    """Every so-many-th is kept too until the stage is done; 0: none."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise HerdError(f"keep={self.keep} keeps no checkpoint: give 1 or more")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Which steps of a training are taken back as outliers, see docs/train.md."""

    window: int = 128
    """Steps that tell what is usual."""
    sigmas: float = 6.0
    """A loss or gradient norm so far above its trend is an outlier; 0: only what is not a number."""
    patience: int = 16
    """So many outliers in a row stop the run."""


@dataclass(frozen=True, kw_only=True)
class VisionStageConfig:
    """A new model, and the contrastive training of its encoder."""

    preset: str = "tiny"
    seed: int = 0
    num_views: int = 100_000
    """Views of pictures in all."""
    batch_pictures: int = 256
    sharpness: float = 2.0
    """Inverse temperature of the scores."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Text and pictures fused early."""

    seed: int = 0
    num_tokens: int = 4_000_000
    """Tokens of training in all."""
    batch_tokens: int = 6144
    """Tokens of one optimizer step."""
    context: int = 512
    """Longest piece of a document, in tokens."""
    picture_share: float = 0.45
    """Share of the tokens that are pictures with their names."""
    picture_weight: float = 2.0
    """What a learnt token of a name weighs beside one of text: few tell what is to be seen."""
    names_a_picture: int = 5
    """Languages in which a picture is named each time it is seen."""
    asked_share: float = 0.3
    """Share of the pictures whose names are asked for, as in chat; the others are followed by lines of names."""
    names_asked: int = 3
    """Languages in which a picture's name is asked for in one chat."""
    tiled_share: float = 0.25
    """How often a large picture is shown in tiles, as chat shows it; else as one tile."""
    micro_batches: int = 1
    """Parts into which a step's batch is cut between documents, computed one after the other: less memory."""
    recompute: bool = False
    """Keep each layer's input alone and compute the layer again in the backward: far less memory, one more forward."""
    balance_rate: float = 0.05
    """How far a step moves the bias by which an expert is chosen, in logits, where it got nothing; 0: no bias."""
    balance_coefficient: float = 0.0
    """Weight of the load-balancing loss; 0: none."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig, metadata=HOW_IT_RUNS)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True)
class MidtrainConfig:
    """Longer documents by stages, beside short ones."""

    seed: int = 0
    num_tokens: int = 4_000_000
    batch_tokens: int = 8192
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Tokens of the long documents: each entry has an equal part of the steps. Those of the first length have single
    needles in English only, and the kinds of documents that the shares tell come with the second."""
    short_share: float = 0.6
    """Share of the tokens that are pieces of at most `context`, as in pre-training, so that what was learnt stays."""
    context: int = 512
    picture_share: float = 0.0
    """Share of the short tokens that are pictures with their names."""
    plain_share: float = 0.2
    """Share of the long documents that are text alone; …"""
    quote_share: float = 0.2
    """… whose last part quotes the first; the others have facts planted in them, and questions at the end."""
    most_questions: int = 32
    """Quotes or questions of one document."""
    answer_weight: float = 4.0
    """What a token of an answer or a quote weighs beside one of text: few are learnt in a long document."""
    micro_batches: int = 1
    recompute: bool = False
    balance_rate: float = 0.05
    balance_coefficient: float = 0.0
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig, metadata=HOW_IT_RUNS)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 128:
            raise HerdError(f"lengths={self.lengths} must name at least one length, each of 128 tokens or more")
        for name in ("short_share", "picture_share", "plain_share", "quote_share"):
            if not 0 <= getattr(self, name) < 1:
                raise HerdError(f"{name}={getattr(self, name)} is not a share from 0 to below 1")
        if self.plain_share + self.quote_share > 1:
            raise HerdError(f"plain_share={self.plain_share} and quote_share={self.quote_share} are more than all")


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Chats: loss on the assistant's tokens only."""

    seed: int = 0
    num_tokens: int = 1_000_000
    batch_tokens: int = 6144
    context: int = 512
    """Longer chats are left out."""
    tiled_share: float = 0.25
    replay_share: float = 0.25
    """Share of the tokens that are pieces of the training documents."""
    replay_weight: float = 0.2
    """What a token of these weighs beside an assistant's: a piece has many more that are learnt."""
    micro_batches: int = 1
    recompute: bool = False
    balance_rate: float = 0.05
    balance_coefficient: float = 0.0
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig, metadata=HOW_IT_RUNS)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            matrix_lr=0.01, embedding_lr=0.01, other_lr=0.004, unembedding_lr=0.004, warmup=0.02, decay=0.9
        )
    )
