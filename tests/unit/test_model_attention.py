"""Temperatures and scaled frequencies against their definitions."""

import math
from dataclasses import replace

import pytest
import torch

from herd.config import ModelConfig, RopeScaling, preset
from herd.model.attention import query_temperature, rope_angles

SCOUT = preset("scout")


@pytest.mark.parametrize(
    ("position", "temperature"), [(0, 1.0), (8190, 1.0), (262_143, 1.35), (1_048_575, 1.49), (10_485_759, 1.72)]
)
def test_the_temperature_at_published_lengths(position: int, temperature: float) -> None:
    [found] = query_temperature(torch.tensor([position]), SCOUT).tolist()
    assert found == 1.0 if temperature == 1.0 else round(found, 2) == temperature
    exact = 1 + 0.1 * math.log(math.floor((position + 1) / 8192) + 1)
    assert found == pytest.approx(exact, abs=1e-6)


def frequencies(config: ModelConfig) -> list[float]:
    """Radians a position, from the turn at position 1."""
    return rope_angles(torch.tensor([1]), config).angle()[0].tolist()


def test_neighbours_are_rotated_by_the_same_angle_at_every_position() -> None:
    step = rope_angles(torch.tensor([1]), SCOUT)
    for position in (100, 8192, 10_485_759, 2**31):
        here, next_ = rope_angles(torch.tensor([position, position + 1]), SCOUT)
        torch.testing.assert_close(next_ / here, step[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (1.0, 4.0), (2.0, 2.0)])
def test_scaled_frequencies_follow_the_wavelength(low: float, high: float) -> None:
    scaling = RopeScaling(factor=16.0, low_freq_factor=low, high_freq_factor=high, original_max_positions=8192)
    for plain, scaled in zip(
        frequencies(replace(SCOUT, rope_scaling=None)), frequencies(replace(SCOUT, rope_scaling=scaling)), strict=True
    ):
        turns = 8192 * plain / (2 * math.pi)  # in the original context
        if turns >= high:
            wanted = plain
        elif turns <= low:
            wanted = plain / 16
        else:
            share = (turns - low) / (high - low)
            wanted = plain * share + plain / 16 * (1 - share)
        assert scaled == pytest.approx(wanted, rel=1e-5)


def test_scout_scales_some_frequencies_and_not_others() -> None:
    plain, scaled = frequencies(replace(SCOUT, rope_scaling=None)), frequencies(SCOUT)
    ratios = [round(one / other) for one, other in zip(plain, scaled, strict=True)]
    assert ratios == sorted(ratios) and set(ratios) == {1, 16}
