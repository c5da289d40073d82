"""The settings of `herd evaluate` and of a report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from herd.config.cyber import CyberConfig, dataset_files
from herd.config.ranges import Checked, Count, Seed, at_least
from herd.errors import HerdError


@dataclass(frozen=True, kw_only=True)
class LongConfig(Checked):
    """What the suite for long texts asks."""

    lengths: tuple[Count, ...] = (4096, 16_384, 65_536, 262_144, 1_048_576)
    """Tokens of text before a question, rounded down to whole chunks."""
    trained: Count | None = None
    """Tokens of the longest document of training; as the model folder says if not given. Lengths are reported as
    multiples of it, and losses by position go up to it."""
    seeds: Count = 2
    """Needles at each depth and length."""
    asks: Count = 20
    """Questions of each other kind at each length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths:
            raise HerdError("lengths is empty: give the tokens of at least one text, such as 4096")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Checked):
    """How much is asked; the same for every model that is compared."""

    suite: Literal["general", "long", "cyber"] = "general"
    """`long`: what is found in long texts, with the settings in `long` below, and none of the rest. `cyber`: the
    benchmarks of CyberSecEval in a checkout of PurpleLlama, with the settings in `cyber`; it needs no data folder."""
    long: LongConfig = field(default_factory=LongConfig)
    cyber: CyberConfig = field(default_factory=CyberConfig)
    purplellama: str = ""
    """Folder of a checkout of PurpleLlama, for the suite `cyber`."""
    base: str = ""
    """Folder of the model that an adapter was trained on, if that is not where the adapter says."""
    seed: Seed = 0
    """Of samples, and of the confidence intervals."""
    languages: tuple[str, ...] = ()
    """Languages in which pictures are named; all in which the data folder names them if not given."""
    kinds: tuple[str, ...] = ()
    """Kinds of held-out chats with one right answer that are asked; all that the data folder has if not given."""
    heldout_bytes: Count = 40_000
    """Held-out text for each language."""
    pictures: Count = 60
    """Pictures of each split for each language."""
    closed_pictures: Count = 32
    """Of these, how many are also asked with candidates: each costs as much as reading hundreds of names."""
    candidates: Annotated[int, at_least(2)] = 100
    """Names to choose from."""
    chats: Count = 100
    """Held-out chats of each kind."""
    answer_tokens: Count = 24
    """Longest answer to a question."""
    sample_tokens: Count = 64
    """Longest sample."""

    def inputs(self) -> dict[str, Path]:
        """The base of an adapter, where it is given, and the benchmarks' files."""
        base = {"base": Path(self.base).expanduser()} if self.base else {}
        return base | self.benchmarks()[0]

    def benchmarks(self) -> tuple[dict[str, Path], dict[str, str]]:
        """Of the suite `cyber`: the files of its benchmarks, and why others have none. Raises HerdError where the
        checkout is not given, or has none."""
        if self.suite != "cyber":
            if self.purplellama:
                raise HerdError(f"purplellama={self.purplellama} is read by suite=cyber alone: give --suite cyber too")
            return {}, {}
        if not self.purplellama:
            raise HerdError(
                "suite=cyber asks the benchmarks of PurpleLlama: give --purplellama the folder of a checkout"
            )
        return dataset_files(Path(self.purplellama).expanduser(), self.cyber.benchmarks)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a report is about."""

    stage: str = ""
    """The stage whose model it is about, with those that it was made from and its evaluations; all if not given."""
