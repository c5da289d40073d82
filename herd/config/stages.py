"""The settings of each stage, in the order of a model's life."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from herd.config.cleaning import CleaningConfig
from herd.config.presets import TINY_VOCAB
from herd.config.ranges import (
    Checked,
    Context,
    Count,
    CountOrNone,
    PartialShare,
    Positive,
    Range,
    Seed,
    Share,
    TrueShare,
    Weight,
    at_least,
)
from herd.config.sources import (
    ChatSource,
    DemonstrationSource,
    ImageSource,
    PreferenceSource,
    PromptSource,
    SourceConfig,
    TextSource,
    VideoSource,
)
from herd.config.training import (
    HOW_IT_RUNS,
    CheckpointConfig,
    LanguageTrainingConfig,
    LossSpikesConfig,
    OptimizerConfig,
    TrainingDtype,
)
from herd.errors import HerdError

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "ja", "zh", "vi", "id", "hi", "ar")
"""The languages of the tiny herd, ISO 639-1."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """What goes into a data folder, and how much of it."""

    text: tuple[TextSource, ...] = ()
    """Documents of yours."""
    chats: tuple[ChatSource, ...] = ()
    """Conversations of yours."""
    preferences: tuple[PreferenceSource, ...] = ()
    """Comparisons of answers of yours."""
    prompts: tuple[PromptSource, ...] = ()
    """Prompts of yours, with what answers are graded by."""
    images: tuple[ImageSource, ...] = ()
    """Pictures with captions of yours."""
    videos: tuple[VideoSource, ...] = ()
    """Videos with captions of yours."""
    demonstrations: tuple[DemonstrationSource, ...] = ()
    """Environments of reinforcement learning whose right answers are shown in chats."""
    found_in: tuple[str, ...] = ()
    """Where --from found these sources: the data card lists the files there that no source reads."""
    workers: Count = field(default=1, metadata=HOW_IT_RUNS)
    """Processes that read, clean and tokenise text; one tokenises on all cores. Any number gives the same bytes."""
    on: Literal["processes", "ray"] = field(default="processes", metadata=HOW_IT_RUNS)
    """Where they run: on this machine, or as tasks on all CPUs of a Ray cluster, whose machines see the same files."""
    packages: bool | None = None
    """Whether the embedded packages go in too; only where there is nothing of yours if not given."""
    tokenizer: str = ""
    """Model folder whose tokenizer is used; if not given, a new one is trained on the text."""
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    """The filters that documents of yours pass; those of the packages are fixed."""
    english_bytes: Annotated[int, at_least(10_000)] = 3_000_000
    """Text in English, held-out part included."""
    other_bytes: Annotated[int, at_least(10_000)] = 450_000
    """Text in each other language; Arabic and Hindi have hardly more."""
    heldout: TrueShare = 0.04
    """Share of each language's text that is held out."""
    heldout_bytes: CountOrNone = 60_000
    """Least text held out in each language (but at most a fifth, to the end of the page that reaches it)."""
    picture_px: Annotated[int, at_least(64)] = 336
    """Longest side of a picture; smaller ones stay as they are."""
    heldout_subjects: TrueShare = 0.15
    """Share of stamps, of emoji (in a style that is not trained on) and of clips kept for evaluation."""
    heldout_pairs: TrueShare = 0.1
    """Share of country and language pairs, of problems and of dialogues kept for evaluation."""
    clips: CountOrNone = 150
    """Video clips."""
    names: CountOrNone = 12_000
    """Training questions for the name of a picture."""
    captions: CountOrNone = 2_000
    """Training questions for the caption of a picture."""
    flags: CountOrNone = 3_000
    """Training questions for the country of a flag."""
    capitals: CountOrNone = 3_000
    """Training questions for the capital of a country."""
    sums: CountOrNone = 2_400
    """Training questions for a sum."""
    tasks: CountOrNone = 1_600
    """Training questions from reasoning-gym."""
    dialogues: CountOrNone = 4_000
    """Training dialogues."""
    clip_names: CountOrNone = 1_200
    """Training questions for what a clip shows."""
    vocab_size: Annotated[int, at_least(300)] = TINY_VOCAB
    """Tokens, the special ones included."""
    seed: Seed = 0
    """Of everything random: which rows are chosen, and in what order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in ("text", "chats", "preferences", "prompts", "images", "videos"):
            object.__setattr__(self, kind, tuple(with_name(source) for source in getattr(self, kind)))
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise HerdError(f"several sources are called {twice[0]!r}: give each a name of its own")
        if self.on == "ray" and self.workers > 1:
            raise HerdError(
                f"workers={self.workers} are of this machine, on=ray uses the CPUs of the cluster: give one"
            )

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """All sources of the user's."""
        return (*self.text, *self.chats, *self.preferences, *self.prompts, *self.images, *self.videos)

    @property
    def reads_packages(self) -> bool:
        """Whether the embedded packages go in."""
        return not (self.sources or self.demonstrations) if self.packages is None else self.packages

    def inputs(self) -> dict[str, Path]:
        """What of the user's is read, by what it is for."""
        found = {f"source {source.name}": Path(source.path).expanduser() for source in self.sources}
        places = [one.environment for one in self.demonstrations]
        found |= {f"demonstrations {place}": Path(place) for place in places if ":" in place or ".jsonl" in place}
        return found | ({"tokenizer": Path(self.tokenizer).expanduser()} if self.tokenizer else {})


def with_name(source: Any) -> Any:
    """The source called after its file or folder, where it has no name."""
    if source.name:
        return source
    fixed = [part for part in Path(source.path).parts if not set(part) & set("*?[")]
    last = fixed[-1] if fixed else source.path
    return replace(source, name=last.lstrip(".").partition(".")[0] or "data")


@dataclass(frozen=True, kw_only=True)
class VisionStageConfig(Checked):
    """The contrastive training of a vision encoder."""

    # Compared by its hash, as parents are.
    encoder: str = field(default="", metadata=HOW_IT_RUNS)
    """A model folder whose encoder to begin with: all of it but the projector, which maps to the width of a language
    model. A model that reads text alone gets an encoder of that shape, and tokens for pictures."""
    seed: Seed = 0
    """Of the order of the views, and of how each is changed."""
    num_views: Count = 100_000
    """Views of pictures in all."""
    batch_pictures: Count = 256
    """Views of one optimizer step."""
    logit_scale: Positive = 2.0
    """Factor on the contrastive scores before their softmax: an inverse temperature."""
    dtype: TrainingDtype = "auto"
    """Number format of weights and activations, as in the stages after this one."""
    trainable: tuple[str, ...] = ("vision.*", "unembedding.*")
    """Parameters that are trained, by patterns of their names; the others are frozen."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=HOW_IT_RUNS)
    loss_spikes: LossSpikesConfig = field(default_factory=LossSpikesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_views < self.batch_pictures:
            raise HerdError(
                f"num_views={self.num_views} are no whole step of batch_pictures={self.batch_pictures}: "
                "give more views, or a smaller step"
            )

    def inputs(self) -> dict[str, Path]:
        """The encoder's folder, if given."""
        return {"encoder": Path(self.encoder).expanduser()} if self.encoder else {}


@dataclass(frozen=True, kw_only=True)
class PretrainPlan(Checked):
    """What pre-training shows: documents, pictures and clips are a function of these settings and the seed."""

    num_tokens: Count = 4_000_000
    """Tokens of training in all."""
    batch_tokens: Count = 6144
    """Tokens of one optimizer step."""
    context: Context = 512
    """Longest piece of a document, in tokens."""
    picture_share: Share = 0.45
    """Share of the tokens that are pictures with their names."""
    picture_schedule: tuple[Share, ...] = ()
    """Its shares in parts of the run of equal length, instead of `picture_share`; none: the same throughout."""
    video_share: Share = 0.0
    """Share of the tokens that are clips with their names."""
    video_schedule: tuple[Share, ...] = ()
    """Its shares in as many parts, instead of `video_share`. With pictures of 0, 0.9, 0.2, 0.3 and videos of 0, 0, 0.7,
    0.2 a run goes from text to pictures to clips to all of them."""
    language_temperature: Annotated[float, Range(1, 100)] = 1.0
    """A language's share of the text is its tokens to the power of 1 / temperature: above 1 small ones are raised."""
    max_epochs: CountOrNone = 0
    """Most passes over the text of any source; what is then missing the other sources give, or training ends sooner. 0:
    no limit but those of the data folder's sources."""
    shuffle_tokens: Annotated[int, at_least(4096)] = 2**26
    """Tokens that are planned and shuffled at a time; a run of no more is shuffled as a whole."""
    names_a_picture: Count = 5
    """Languages in which a picture or a clip is named each time it is seen."""
    asked_share: Share = 0.3
    """Share of the pictures and clips whose names are asked for, as in chat; lines of names follow the others."""
    names_asked: Count = 3
    """Languages in which a name is asked for in one chat."""
    tiled_share: Share = 0.25
    """How often a large picture is shown in tiles, as chat shows it; else as one tile."""
    frames_a_clip: Count = 2
    """Frames of a clip that are shown, evenly spread. Two tell it from a still."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pictures, videos = self.picture_schedule, self.video_schedule
        if pictures and videos and len(pictures) != len(videos):
            raise HerdError(
                f"picture_schedule={pictures} and video_schedule={videos} cut the run into {len(pictures)} and "
                f"{len(videos)} parts: give as many shares in both"
            )
        if any(picture + video > 1 + 1e-9 for picture, video in self.shares):
            raise HerdError(
                f"shares of pictures and clips of {', '.join(f'{p:g} and {v:g}' for p, v in self.shares)} are more "
                "than all tokens: the sum is at most 1"
            )

    @property
    def shares(self) -> tuple[tuple[float, float], ...]:
        """Shares of pictures and of clips in each part of the run."""
        parts = len(self.picture_schedule) or len(self.video_schedule) or 1
        pictures = self.picture_schedule or (self.picture_share,) * parts
        return tuple(zip(pictures, self.video_schedule or (self.video_share,) * parts, strict=True))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(PretrainPlan, LanguageTrainingConfig):
    """Text, pictures and clips fused early."""

    picture_weight: Weight = 2.0
    """What a learnt token of a name, of a picture or a clip, weighs beside one of text: few describe what is shown."""


@dataclass(frozen=True, kw_only=True)
class MidtrainConfig(LanguageTrainingConfig):
    """Longer documents by stages, beside short ones."""

    num_tokens: Count = 4_000_000
    """Tokens of training in all."""
    batch_tokens: Count = 8192
    """Tokens of one optimizer step."""
    lengths: tuple[Annotated[int, at_least(128)], ...] = (1024, 2048, 4096)
    """Tokens of the long documents: each entry has an equal part of the steps. Those of the first length have single
    needles in English only, and the other kinds of documents come with the second."""
    short_share: PartialShare = 0.6
    """Share of the tokens that are pieces of at most `context`, as in pre-training, so that what was learnt stays."""
    context: Context = 512
    """Longest of these pieces, in tokens."""
    picture_share: PartialShare = 0.0
    """Share of the short tokens that are pictures with their names."""
    plain_share: PartialShare = 0.2
    """Share of the long documents that are text alone."""
    quote_share: PartialShare = 0.2
    """Share of the long documents whose last part quotes the first. The others have facts planted in them, and
    questions at the end."""
    needle_share: Share = 0.0
    """Share of the documents with planted facts that have single needles alone, as those of the first length do."""
    book_share: Share = 0.0
    """Share of the long documents, of any kind, whose text is a stretch of one book, manual or code tree in its own
    order; that of the others are documents of one language in a row."""
    most_questions: Count = 32
    """Quotes or questions of one document."""
    answer_weight: Weight = 4.0
    """What a token of an answer or a quote weighs beside one of text: few are learnt in a long document."""
    loss_spikes: LossSpikesConfig = field(default_factory=lambda: LossSpikesConfig(skip=("not_finite",)))
    """Losses and norms are not judged: longer documents and questions that begin to be answered are outliers by
    intent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths:
            raise HerdError("lengths is empty: give the tokens of at least one kind of long document, such as 1024")
        if self.plain_share + self.quote_share > 1:
            raise HerdError(
                f"plain_share={self.plain_share} and quote_share={self.quote_share} are more than all documents: "
                "their sum is at most 1"
            )


@dataclass(frozen=True, kw_only=True)
class SftConfig(LanguageTrainingConfig):
    """Chats: loss on the assistant's tokens, and on replayed text."""

    # Compared by its hash, as parents are.
    selection: str = field(default="", metadata=HOW_IT_RUNS)
    """Folder that herd select wrote from the data folder: only the chats that it keeps are trained on; all if not
    given."""
    num_tokens: Count = 1_000_000
    """Tokens of training in all."""
    batch_tokens: Count = 6144
    """Tokens of one optimizer step."""
    context: Context = 512
    """Tokens of the longest chat."""
    long_chats: Literal["drop", "cut", "window"] = "drop"
    """What becomes of longer ones. `drop`: they are left out; `cut`: what is behind the context is; `window`: they are
    split between turns into several chats, each with the system message."""
    max_epochs: CountOrNone = 0
    """Most passes over the chats, after which training ends before `num_tokens`; 0: no limit."""
    tiled_share: Share = 0.25
    """How often a large picture is shown in tiles, else as one tile."""
    frames_a_clip: Count = 2
    """Frames of a clip that are shown, evenly spread. Two tell it from a still at a quarter of the tokens of eight."""
    replay_share: PartialShare = 0.25
    """Share of the tokens that are pieces of the training documents."""
    replay_weight: Weight = 0.2
    """What a token of these weighs beside an assistant's: a piece has many more that are learnt."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            matrix_lr=0.01, embedding_lr=0.01, other_lr=0.004, unembedding_lr=0.004, warmup_ratio=0.02, decay=0.9
        )
    )

    def inputs(self) -> dict[str, Path]:
        """The selection, if there is one."""
        return {"selection": Path(self.selection).expanduser()} if self.selection else {}
