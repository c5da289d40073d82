"""herd.rl.curriculum: fixed shares, no cell starves, hard cells are learned from fewer groups."""

import json
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_learner import groups_to_learn

from herd.config.rl import CurriculumConfig
from herd.errors import HerdError
from herd.rl.curriculum import MOST_DEALT, Curriculum
from herd.rl.ledger import Waves

SHARES = st.lists(st.integers(1, 100).map(lambda number: number / 100), min_size=1, max_size=6)


def ladder(num_cells: int, **config: Any) -> Curriculum:
    """One environment `digits` of cells `n=0`, `n=1` …"""
    return Curriculum({"digits": [f"n={i}" for i in range(num_cells)]}, {"digits": 1}, CurriculumConfig(**config))


def know(curriculum: Curriculum, *rates: float, n: int = 4000) -> None:
    """Show it many answers of each cell of the ladder."""
    for place, rate in enumerate(rates):
        curriculum.update("digits", f"n={place}", rate * n, n)


@given(SHARES, st.lists(st.integers(0, 40), max_size=12))
def test_no_environment_is_ever_a_whole_group_off_its_share(shares: list[float], counts: list[int]):
    named = {f"e{place}": share for place, share in enumerate(shares)}
    curriculum = Curriculum({name: ["easy", "hard"] for name in named}, named, CurriculumConfig())
    dealt = Counter[str]()
    for wave, count in enumerate(counts):
        some = curriculum.deal(count, 0, wave, len(counts))
        assert len(some) == count
        dealt.update(environment for environment, _, _ in some)
        for name, share in named.items():
            exact = Fraction(str(share)) / sum(Fraction(str(one)) for one in shares) * dealt.total()
            assert abs(dealt[name] - exact) < 1


def test_shares_of_whole_groups_are_kept_in_every_wave():
    shares = {"digits": 0.6, "names": 0.3, "search": 0.1}
    curriculum = Curriculum({name: ["easy", "hard"] for name in shares}, shares, CurriculumConfig())
    for wave in range(20):
        dealt = Counter(environment for environment, _, _ in curriculum.deal(10, 3, wave, 20))
        assert dealt == {"digits": 6, "names": 3, "search": 1}


@given(st.integers(1, 8), st.lists(st.integers(0, 30), max_size=8), st.booleans())
def test_every_task_is_dealt_once_and_none_is_left_out(num_cells: int, counts: list[int], uniform: bool):
    curriculum, dealt = ladder(num_cells, uniform=uniform), list[Any]()
    for wave, count in enumerate(counts):
        dealt += curriculum.deal(count, 0, wave, len(counts))
        curriculum.update("digits", "n=0", wave, 8)
        curriculum.end_step()
    for name in {cell for _, cell, _ in dealt}:
        assert sorted(index for _, cell, index in dealt if cell == name) == list(
            range(Counter(c for _, c, _ in dealt)[name])
        )


@given(st.integers(1, 10), st.integers(1, 20), st.data())
def test_no_cell_starves_whatever_the_answers_are(num_cells: int, count: int, data: st.DataObject):
    curriculum = ladder(num_cells)
    # A cell is owed at least explore/cells of each group, and is next when no other is owed more.
    longest = math.ceil(num_cells / 0.1 * (2 + math.log(num_cells)) / count)
    waves = 2 * longest
    since = dict.fromkeys([f"n={i}" for i in range(num_cells)], 0)
    rates = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=num_cells, max_size=num_cells))
    for wave in range(waves):
        dealt = {cell for _, cell, _ in curriculum.deal(count, 1, wave, waves)}
        since = {name: 0 if name in dealt else number + 1 for name, number in since.items()}
        assert max(since.values()) < longest
        know(curriculum, *rates, n=10**6)
        curriculum.end_step()


def test_solved_cells_are_revisited_and_hopeless_ones_explored():
    curriculum = ladder(4)
    know(curriculum, 0.999, 0.5, 0.4, 0.0)
    dealt = Counter(cell for _, cell, _ in curriculum.deal(2000, 0, 0, 10))
    assert dealt["n=0"] == pytest.approx(2000 * (0.1 / 4 + 0.05), abs=2)
    assert dealt["n=3"] == pytest.approx(2000 * 0.1 / 4, rel=0.1)


def test_where_all_is_solved_or_nothing_is_known_all_cells_are_dealt_alike():
    curriculum = ladder(4)
    assert curriculum.chances("digits", 0, 10) == pytest.approx(dict.fromkeys(["n=0", "n=1", "n=2", "n=3"], 0.25))
    know(curriculum, 1, 1, 1, 1)
    assert curriculum.chances("digits", 0, 10) == pytest.approx(dict.fromkeys(["n=0", "n=1", "n=2", "n=3"], 0.25))


@pytest.mark.parametrize(("wave", "target"), [(0, 0.5), (5, 0.4), (10, 0.3)])
def test_the_cell_at_the_target_is_dealt_most_and_the_target_falls(wave: int, target: float):
    rates = np.linspace(0.02, 0.94, 47)
    curriculum = ladder(len(rates))
    know(curriculum, *rates, n=10**7)
    chances = curriculum.chances("digits", wave, 11)
    assert rates[int(np.argmax(list(chances.values())))] == pytest.approx(target)
    useful = (rates**target * (1 - rates) ** (1 - target)) ** 2
    # No cell is solved, so what would revisit them goes to the others.
    expected = (0.1 / 47 + 0.85 * useful / useful.sum()) / 0.95
    assert list(chances.values()) == pytest.approx(expected, rel=1e-4)


@given(st.floats(0, 30), st.floats(0, 30), st.integers(2, 16))
def test_expectations_over_the_posterior_are_those_of_an_integral(passes: float, fails: float, group_size: int):
    curriculum = ladder(2)
    curriculum.update("digits", "n=0", passes, passes + fails)
    p = (np.arange(50_000) + 0.5) / 50_000
    densities = []
    for a, b in ((passes, fails), (0, 0)):
        log = a * np.log(p) + b * np.log1p(-p)
        densities.append(np.exp(log - log.max()) / np.exp(log - log.max()).sum())
    useful = [float(density @ (p * (1 - p))) for density in densities]
    signal = [float(density @ (1 - p**group_size - (1 - p) ** group_size)) for density in densities]
    chances = curriculum.chances("digits", 0, 2)
    assert curriculum.pass_rate("digits", "n=0") == pytest.approx(float(densities[0] @ p), abs=1e-4)
    if curriculum.pass_rate("digits", "n=0") <= 0.95:
        expected = (0.05 + 0.85 * useful[0] / sum(useful)) / 0.95
        assert chances["n=0"] == pytest.approx(expected, rel=1e-3)
    expected = sum(chance * share for chance, share in zip(chances.values(), signal, strict=True))
    assert curriculum.keep_rate(group_size, 0, 2) == pytest.approx(expected, abs=1e-4)


def test_the_rate_of_groups_with_signal_is_met_where_the_tasks_of_a_cell_are_equally_hard():
    rng, rates, curriculum = np.random.default_rng(0), np.array([0.9, 0.4, 0.05]), ladder(3)
    know(curriculum, *rates, n=10**5)
    cells = [int(cell[2:]) for _, cell, _ in curriculum.deal(20_000, 0, 0, 2)]
    passes = rng.binomial(8, rates[cells])
    assert ((passes > 0) & (passes < 8)).mean() == pytest.approx(curriculum.keep_rate(8, 0, 2), abs=0.015)


def test_old_answers_count_for_less_with_every_step():
    curriculum = ladder(1, forgetting=0.5)
    curriculum.update("digits", "n=0", 8, 8)
    assert curriculum.pass_rate("digits", "n=0") == pytest.approx(9 / 10)
    curriculum.end_step()
    assert curriculum.pass_rate("digits", "n=0") == pytest.approx(5 / 6)
    curriculum.update("digits", "n=0", 0, 8)
    assert curriculum.pass_rate("digits", "n=0") == pytest.approx(5 / 14)


@given(st.integers(0, 5), st.integers(0, 2**40))
def test_a_restored_curriculum_deals_what_the_first_one_deals(waves: int, seed: int):
    shares = {"digits": 0.7, "names": 0.3}
    cells = {"digits": ["n=3", "n=4", "n=5"], "names": ["en"]}
    first, second = (Curriculum(cells, shares, CurriculumConfig()) for _ in range(2))
    for wave in range(waves):
        for environment, cell, index in first.deal(7, seed, wave, 10):
            first.update(environment, cell, index % 3, 4)
        first.end_step()
    second.restore(json.loads(json.dumps(first.state())))
    for wave in range(waves, waves + 3):
        assert first.deal(7, seed, wave, 10) == second.deal(7, seed, wave, 10)
    assert first.state() == second.state()


def test_the_seed_mixes_what_is_dealt_and_changes_no_share():
    dealt = [ladder(5).deal(100, seed, 0, 10) for seed in (0, 0, 1)]
    assert dealt[0] == dealt[1] != dealt[2]
    assert sorted(dealt[0]) == sorted(dealt[2])
    assert dealt[0] != sorted(dealt[0])


def test_the_control_deals_all_cells_alike_whatever_it_sees():
    curriculum = ladder(7, uniform=True)
    know(curriculum, 0, 0.5, 1, 0.3, 0.2, 1, 1)
    dealt = Counter(cell for _, cell, _ in curriculum.deal(7 * 20, 0, 0, 10))
    assert set(dealt.values()) == {20}


@pytest.mark.parametrize(
    ("world", "least"),
    [
        pytest.param({}, 1.5, id="ladder"),
        pytest.param({"num_cells": 24, "slope": 0.5}, 1.5, id="long ladder", marks=pytest.mark.slow),
        pytest.param({"transfer": 0.0, "rate": 2.0}, 1.0, id="no transfer"),
    ],
)
def test_a_simulated_learner_masters_hard_cells_with_fewer_groups_than_by_uniform_dealing(
    world: dict[str, Any], least: float
):
    ratios = []
    for seed in range(5):
        uniform, steps = groups_to_learn(CurriculumConfig(uniform=True), seed, num_waves=100, **world)
        drawn, _ = groups_to_learn(CurriculumConfig(), seed, num_waves=steps, **world)
        ratios.append(uniform / drawn)
    print(f"groups by uniform dealing / by the curriculum: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    assert min(ratios) > least


@pytest.mark.parametrize(
    ("cells", "shares", "message"),
    [
        ({"digits": ["n=3"]}, {"names": 1}, r"shares are given for \['names'\], but the environments are \['digits'\]"),
        ({"digits": ["n=3"]}, {"digits": 0}, "share=0 of digits must be above 0"),
        ({"digits": ["n=3"]}, {"digits": float("nan")}, "share=nan of digits"),
        ({"digits": []}, {"digits": 1}, "digits has no cells"),
    ],
)
def test_what_cannot_be_dealt_is_refused(cells: Any, shares: Any, message: str):
    with pytest.raises(HerdError, match=message):
        Curriculum(cells, shares, CurriculumConfig())


def test_a_config_without_a_share_for_hard_cells_is_refused():
    with pytest.raises(HerdError, match=r"explore=0\.5 and revisit=0\.5 leave nothing"):
        CurriculumConfig(explore=0.5, revisit=0.5)


def test_the_state_of_other_cells_is_refused():
    with pytest.raises(HerdError, match=r"cells of the saved curriculum are .* start over with --restart"):
        ladder(3).restore(ladder(4).state())


def trained_groups(share: float, lag: int, seed: int, *, num_steps: int = 24, groups: int = 24) -> list[int]:
    """How many groups each step is trained on where this share has signal and the others are all right or all wrong."""
    rng, curriculum = np.random.default_rng(seed), ladder(3)
    ledger, ordinal, applied = Waves(num_steps=num_steps, lag=lag, groups=groups), 0, 0
    results: dict[int, list[tuple[str, int]]] = {}
    trained = []
    while len(trained) < num_steps:
        while (deal := ledger.next_deal()) is not None:
            settled = ledger.settled()
            for wave in [one for one in results if one < settled]:
                for cell, passes in results.pop(wave):
                    curriculum.update("digits", cell, passes, 8)
                    curriculum.count(has_signal=0 < passes < 8)
            if applied < settled:
                curriculum.end_step()
            applied = settled
            count = curriculum.num_to_deal(deal.count, 8, deal.wave, num_steps)
            places = curriculum.deal(count, seed, deal.wave, num_steps)
            ledger.admit(range(ordinal, ordinal + count), deal)
            for _, cell, _ in places:
                passes = int(rng.integers(1, 8)) if rng.random() < share else 8 * int(rng.integers(2))
                results.setdefault(deal.wave, []).append((cell, passes))
                ledger.finish(ordinal, has_signal=0 < passes < 8)
                ordinal += 1
        step, ordinals = ledger.next_pick()
        ledger.pick(step, ordinals)
        trained.append(len(ordinals))
        ledger.publish(step + 1)
    return trained


@settings(max_examples=30)
@given(st.floats(0.08, 1), st.integers(0, 4), st.integers(0, 10**6))
def test_waves_bring_as_many_groups_as_are_asked_for_whatever_share_has_signal(share: float, lag: int, seed: int):
    trained = trained_groups(share, lag, seed)
    assert np.mean(trained[lag + 1 :]) == pytest.approx(24, rel=0.25)
    assert trained[0] >= 12


def test_where_hardly_any_group_has_signal_a_wave_is_bounded():
    curriculum = ladder(2)
    assert 24 < curriculum.num_to_deal(24, 8, 0, 2) < 40  # the posterior alone
    for _ in range(10_000):
        curriculum.count(has_signal=False)
    assert curriculum.num_to_deal(24, 8, 0, 2) == 24 * MOST_DEALT
