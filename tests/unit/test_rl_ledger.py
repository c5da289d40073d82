"""Who may be drawn and trained: properties of the ledgers over random schedules."""

import random
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from herd.rl.ledger import MAX_ROUNDS, Ledger, State, Waves, Window

GROUPS = 3


@dataclass
class History:
    """What happened in a run."""

    dealt: dict[int, int] = field(default_factory=dict)
    """Version by ordinal."""
    newest: dict[int, int] = field(default_factory=dict)
    """The newest version when a group was admitted."""
    trained: dict[int, int] = field(default_factory=dict)
    """Step by ordinal."""
    dropped: set[int] = field(default_factory=set)
    steps: dict[int, tuple[int, ...]] = field(default_factory=dict)
    under_way: int = 0
    settled: list[int] = field(default_factory=list)
    """Waves that are known, by deal."""


def has_signal(ordinal: int, seed: int, rate: float) -> bool:
    return random.Random(f"{seed} {ordinal}").random() < rate


def play(ledger: Ledger, *, num_steps: int, seed: int, rate: float, timing: random.Random) -> History:
    """Run to the end in an order that `timing` draws; what becomes of a group is a function of `seed`."""
    history, opened, pending, version, count = History(), [], [], 0, 0
    while version < num_steps:
        moves = []
        if (deal := ledger.next_deal()) is not None:
            moves.append("deal")
        if opened:
            moves.append("finish")
        if (found := ledger.next_pick()) is not None:
            moves.append("pick")
        if pending:
            moves.append("train")
        assert moves, "the run stands still"
        match timing.choice(moves):
            case "deal":
                number = deal.count
                if isinstance(ledger, Waves):
                    # As the curriculum, which learns from what is settled: that must not depend on the timing.
                    settled = ledger.waves[: ledger.settled()]
                    assert not any(wave.open for wave in settled), "more of what is settled is to come"
                    number += sum(sum(wave.kept) for wave in settled) % 3
                ordinals = list(range(count, count + number))
                count += number
                history.settled.append(ledger.settled())
                ledger.admit(ordinals, deal)
                opened += ordinals
                history.dealt |= dict.fromkeys(ordinals, deal.version)
                history.newest |= dict.fromkeys(ordinals, version)
            case "finish":
                ordinal = opened.pop(timing.randrange(len(opened)))
                signal = has_signal(ordinal, seed, rate)
                if not signal:
                    history.dropped.add(ordinal)
                ledger.finish(ordinal, has_signal=signal)
            case "pick":
                step, ordinals = found
                ledger.pick(step, ordinals)
                history.steps[step] = ordinals
                history.trained |= dict.fromkeys(ordinals, step)
                pending.append(step)
            case "train":
                assert pending.pop(0) == version
                version += 1
                ledger.publish(version)
        under_way = len(history.dealt) - len(history.dropped) - sum(s < version for s in history.trained.values())
        history.under_way = max(history.under_way, under_way)
    assert set(history.trained) | history.dropped | set(opened) | ready(ledger) == set(history.dealt)
    assert not set(history.trained) & history.dropped
    return history


def ready(ledger: Ledger) -> set[int]:
    """Groups that are done and were not needed."""
    done = ledger._line.items() if isinstance(ledger, Window) else ()
    return {ordinal for ordinal, state in done if state is State.DONE}


def waves(num_steps: int, lag: int) -> Waves:
    return Waves(num_steps=num_steps, lag=lag, groups=GROUPS)


plans = st.tuples(st.integers(1, 8), st.integers(0, 4), st.integers(0, 10**6), st.sampled_from([0.15, 0.3, 0.7, 1.0]))


@given(plans, st.integers(0, 10**6), st.integers(0, 10**6))
def test_what_waves_draw_and_train_is_the_same_whatever_the_timing(plan, first, second):
    num_steps, lag, seed, rate = plan
    histories = [
        play(waves(num_steps, lag), num_steps=num_steps, seed=seed, rate=rate, timing=random.Random(one))
        for one in (first, second)
    ]
    assert histories[0].steps == histories[1].steps
    assert histories[0].dealt == histories[1].dealt


@given(plans, st.integers(0, 10**6))
def test_a_wave_is_drawn_by_the_weights_of_lag_steps_before(plan, timing):
    num_steps, lag, seed, rate = plan
    history = play(waves(num_steps, lag), num_steps=num_steps, seed=seed, rate=rate, timing=random.Random(timing))
    for ordinal, step in history.trained.items():
        assert history.dealt[ordinal] == max(0, step - lag)
    assert all(history.steps.values())


@given(plans, st.integers(0, 3 * GROUPS), st.integers(0, 10**6))
def test_in_a_window_no_group_gets_older_than_its_bound_and_none_waits_for_ever(plan, more, timing):
    num_steps, lag, seed, rate = plan
    ledger = Window(num_steps=num_steps, lag=lag, groups=GROUPS, window=1 + more)
    history = play(ledger, num_steps=num_steps, seed=seed, rate=rate, timing=random.Random(timing))
    for ordinal, step in history.trained.items():
        assert step - history.newest[ordinal] <= ledger.max_age
    assert all(len(ordinals) == GROUPS for ordinals in history.steps.values())
    assert history.under_way <= (lag + 1) * GROUPS


@given(plans, st.integers(0, 10**6))
def test_the_narrowest_window_trains_in_strict_order(plan, timing):
    num_steps, lag, seed, rate = plan
    ledger = Window(num_steps=num_steps, lag=lag, groups=GROUPS, window=1)
    history = play(ledger, num_steps=num_steps, seed=seed, rate=rate, timing=random.Random(timing))
    trained = [ordinal for step in sorted(history.steps) for ordinal in history.steps[step]]
    assert trained == sorted(trained)
    assert not [one for one in range(trained[-1]) if one not in history.trained and one not in history.dropped]


@given(plans, st.integers(0, 10**6))
def test_the_first_wave_has_half_of_a_step_and_is_done_before_the_second_is_dealt(plan, timing):
    num_steps, lag, seed, rate = plan
    ledger = waves(num_steps, lag)
    history = play(ledger, num_steps=num_steps, seed=seed, rate=rate, timing=random.Random(timing))
    assert 2 * len(history.steps[0]) >= GROUPS
    assert history.settled[1:] == sorted(history.settled[1:])
    assert all(settled >= 1 for settled in history.settled[1:])


def test_a_first_wave_with_little_signal_is_not_drawn_for_ever():
    ledger = Waves(num_steps=2, lag=0, groups=4)
    for round in range(MAX_ROUNDS):
        assert ledger.next_pick() is None
        deal = ledger.next_deal()
        assert (deal.wave, deal.round, deal.count) == (0, round, 4 - (round > 0))
        ledger.admit([round], deal)
        ledger.finish(round, has_signal=round == 0)
    assert not ledger.is_starved
    assert ledger.next_pick() == (0, (0,))


def test_a_wave_without_signal_is_drawn_again_by_the_same_version_and_starves_in_the_end():
    ledger = waves(2, 0)
    for round in range(MAX_ROUNDS):
        assert not ledger.is_starved
        deal = ledger.next_deal()
        assert (deal.wave, deal.round, deal.version) == (0, round, 0)
        ledger.admit([round], deal)
        assert ledger.next_deal() is None
        ledger.finish(round, has_signal=False)
    assert ledger.is_starved


def test_a_window_without_signal_starves():
    ledger = Window(num_steps=2, lag=0, groups=GROUPS, window=1)
    for ordinal in range(MAX_ROUNDS * GROUPS):
        assert not ledger.is_starved
        ledger.admit([ordinal], ledger.next_deal())
        ledger.finish(ordinal, has_signal=False)
    assert ledger.is_starved
