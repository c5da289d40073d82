"""herd.config.ranges: no config is made with a number that its stage cannot work with."""

import math
from contextlib import suppress
from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.cli import main
from herd.config import (
    CheckpointConfig,
    DataConfig,
    DistillConfig,
    EncoderConfig,
    EvaluateConfig,
    LongConfig,
    LoraConfig,
    LossSpikesConfig,
    MidtrainConfig,
    NewModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    PruneConfig,
    SelectConfig,
    SftConfig,
    TeachConfig,
    VisionStageConfig,
)
from herd.config.attack import AttackConfig
from herd.config.ranges import Range
from herd.config.rl import CurriculumConfig
from herd.errors import HerdError
from herd.stages.convert import ConvertConfig

CONFIGS = (
    DataConfig, NewModelConfig, EncoderConfig, VisionStageConfig, PretrainConfig, MidtrainConfig, SftConfig,
    SelectConfig,
    TeachConfig, DistillConfig, PruneConfig,
    EvaluateConfig, LongConfig, ConvertConfig, OptimizerConfig, ParallelConfig, CheckpointConfig, LossSpikesConfig,
    LoraConfig,
    CurriculumConfig, AttackConfig,
)  # fmt: skip


def numbers_in(hint: Any) -> list[Any]:
    """The types of the numbers in a field's type, as they are annotated."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if kind in (int, float):
        return [hint]
    return [] if get_origin(hint) is Annotated else [one for part in get_args(hint) for one in numbers_in(part)]


NUMBERS = [
    (config, field.name, hint)
    for config in CONFIGS
    for field in fields(config)
    for hint in dict.fromkeys(numbers_in(get_type_hints(config, include_extras=True)[field.name]))
]


def make(config: Any, name: str, value: float) -> Any:
    several = isinstance(getattr(config(), name), tuple)
    return config(**{name: (value,) * (len(getattr(config(), name)) or 1) if several else value})


def range_of(hint: Any) -> Range:
    [limits] = [item for item in get_args(hint)[1:] if isinstance(item, Range)]
    return limits


@pytest.mark.parametrize(("config", "name", "hint"), NUMBERS, ids=lambda of: getattr(of, "__name__", str(of)))
def test_every_number_of_a_config_has_a_range_and_is_held_to_it(config: Any, name: str, hint: Any):
    limits = range_of(hint)
    assert math.isfinite(limits.low) and math.isfinite(limits.high)
    for value in (limits.low - 1, limits.high + 1, -1, math.nan, math.inf, -math.inf, -(10**30), 10**30):
        with pytest.raises(HerdError, match=rf"{name}=.* must be (at least|at most|above|below) "):
            make(config, name, value)
    for value in (limits.low if limits.above else None, limits.high if limits.below else None):
        if value is not None:
            with pytest.raises(HerdError, match=f"{name}="):
                make(config, name, value)


@given(st.sampled_from(NUMBERS), st.floats() | st.integers() | st.floats(-2, 2) | st.integers(-2, 2))
def test_a_config_is_made_only_of_numbers_in_range(number: tuple[Any, str, Any], value: float):
    config, name, hint = number
    limits, made = range_of(hint), False
    with suppress(HerdError):
        made = bool(make(config, name, value))
    assert limits.low <= value <= limits.high or not made


@pytest.mark.parametrize(
    ("make", "reported"),
    [
        (lambda: OptimizerConfig(warmup_ratio=0.6, decay=0.6), "warmup_ratio=0.6 and decay=0.6 are more than all"),
        (lambda: MidtrainConfig(plain_share=0.6, quote_share=0.6), "plain_share=0.6 and quote_share=0.6 are more"),
        (lambda: MidtrainConfig(lengths=()), "lengths is empty"),
        (lambda: MidtrainConfig(lengths=(1024, 100)), r"lengths=\(1024, 100\) must be at least 128"),
        (lambda: NewModelConfig(preset="tinny"), "unknown preset 'tinny', did you mean 'tiny'"),  # type: ignore[arg-type]
        (lambda: VisionStageConfig(num_views=8), "num_views=8 are no whole step of batch_pictures=256"),
        (lambda: LongConfig(lengths=()), "lengths is empty"),
        (lambda: PretrainConfig(picture_share=1.5), "picture_share=1.5 must be at most 1$"),
        (lambda: SftConfig(replay_share=1.0), "replay_share=1.0 must be below 1$"),
        (lambda: PretrainConfig(picture_share=math.nan), "picture_share=nan must be at least 0 and at most 1$"),
    ],
)
def test_what_cannot_go_together_is_refused_with_the_values(make: Any, reported: str):
    with pytest.raises(HerdError, match=reported):
        make()


def test_a_command_refuses_what_is_out_of_range_before_it_does_anything(capsys: pytest.CaptureFixture[str]):
    assert main(["pretrain", "m", "--data", "d", "--out", "o", "--context", "0"]) == 1
    assert capsys.readouterr().err == "herd: context=0 must be at least 16\n"
    assert main(["sft", "m", "--data", "d", "--out", "o", "--num-tokens", "0"]) == 1
    assert capsys.readouterr().err == "herd: num_tokens=0 must be at least 1\n"
