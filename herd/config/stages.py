"""The settings of each stage, in the order of a model's life."""

from dataclasses import dataclass, field

from herd.config.presets import TINY_VOCAB
from herd.config.training import HOW_IT_RUNS, CheckpointConfig, GuardConfig, OptimizerConfig, ParallelConfig
from herd.core.errors import HerdError

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "ja", "zh", "vi", "id", "hi", "ar")
"""The languages of the tiny herd, ISO 639-1."""


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
    """Video clips."""
    names: int = 12_000
    """Training questions for the name of a picture."""
    captions: int = 2_000
    """Training questions for the caption of a picture."""
    flags: int = 3_000
    """Training questions for the country of a flag."""
    capitals: int = 3_000
    """Training questions for the capital of a country."""
    sums: int = 2_400
    """Training questions for a sum."""
    tasks: int = 1_600
    """Training questions from reasoning-gym."""
    dialogues: int = 4_000
    """Training dialogues."""
    clip_names: int = 1_200
    """Training questions for what a clip shows."""
    vocab_size: int = TINY_VOCAB
    """Tokens, the special ones included."""
    seed: int = 0
    """Of everything random: which rows are chosen, and in what order."""

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
class VisionStageConfig:
    """A new model, and the contrastive training of its encoder."""

    preset: str = "tiny"
    """Shape of the model, as `herd plan` names them."""
    seed: int = 0
    """Of the first weights, of the order of the views, and of how each is changed."""
    likeness: float = 0.0
    """How far the first queries of global layers are their keys (0 to 1): finding in a long text begins sooner."""
    num_views: int = 100_000
    """Views of pictures in all."""
    batch_pictures: int = 256
    """Views of one optimizer step."""
    sharpness: float = 2.0
    """Inverse temperature of the scores."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Text and pictures fused early."""

    seed: int = 0
    """Of the order of the documents, and of everything else that is drawn."""
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
    """Of the order of the documents, and of everything else that is drawn."""
    num_tokens: int = 4_000_000
    """Tokens of training in all."""
    batch_tokens: int = 8192
    """Tokens of one optimizer step."""
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Tokens of the long documents: each entry has an equal part of the steps. Those of the first length have single
    needles in English only, and the kinds of documents that the shares tell come with the second."""
    short_share: float = 0.6
    """Share of the tokens that are pieces of at most `context`, as in pre-training, so that what was learnt stays."""
    context: int = 512
    """Longest of these pieces, in tokens."""
    picture_share: float = 0.0
    """Share of the short tokens that are pictures with their names."""
    plain_share: float = 0.2
    """Share of the long documents that are text alone."""
    quote_share: float = 0.2
    """Share of the long documents whose last part quotes the first. The others have facts planted in them, and
    questions at the end."""
    needle_share: float = 0.0
    """Share of the documents with planted facts that have single needles alone, as those of the first length do."""
    book_share: float = 0.0
    """Share of the long documents, of any kind, whose text is a stretch of one book, manual or code tree in its own
    order; that of the others are documents of one language in a row."""
    most_questions: int = 32
    """Quotes or questions of one document."""
    answer_weight: float = 4.0
    """What a token of an answer or a quote weighs beside one of text: few are learnt in a long document."""
    micro_batches: int = 1
    """Parts into which a step's batch is cut between documents, computed one after the other: less memory."""
    recompute: bool = False
    """Keep each layer's input alone and compute the layer again in the backward: far less memory, one more forward."""
    balance_rate: float = 0.05
    """How far a step moves the bias by which an expert is chosen, in logits, where it got nothing; 0: no bias."""
    balance_coefficient: float = 0.0
    """Weight of the load-balancing loss; 0: none."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=lambda: GuardConfig(sigmas=0.0))
    """Norms are not judged: longer documents and questions that begin to be answered are outliers by intent."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig, metadata=HOW_IT_RUNS)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 128:
            raise HerdError(f"lengths={self.lengths} must name at least one length, each of 128 tokens or more")
        for name in ("short_share", "picture_share", "plain_share", "quote_share"):
            if not 0 <= getattr(self, name) < 1:
                raise HerdError(f"{name}={getattr(self, name)} is not a share from 0 to below 1")
        for name in ("needle_share", "book_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise HerdError(f"{name}={getattr(self, name)} is not a share from 0 to 1")
        if self.plain_share + self.quote_share > 1:
            raise HerdError(f"plain_share={self.plain_share} and quote_share={self.quote_share} are more than all")


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Chats: loss on the assistant's tokens only."""

    seed: int = 0
    """Of the order of the documents, and of everything else that is drawn."""
    num_tokens: int = 1_000_000
    """Tokens of training in all."""
    batch_tokens: int = 6144
    """Tokens of one optimizer step."""
    context: int = 512
    """Longer chats are left out."""
    tiled_share: float = 0.25
    """How often a large picture is shown in tiles, else as one tile."""
    replay_share: float = 0.25
    """Share of the tokens that are pieces of the training documents."""
    replay_weight: float = 0.2
    """What a token of these weighs beside an assistant's: a piece has many more that are learnt."""
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
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            matrix_lr=0.01, embedding_lr=0.01, other_lr=0.004, unembedding_lr=0.004, warmup=0.02, decay=0.9
        )
    )
