"""herd.rl.facts: what a step is said to be, from groups whose figures are counted by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rl_groups import group, rollout

from herd.rl.facts import alarms, drawing_facts, shuffled_facts, training_facts
from herd.rl.record import Group, Span

TWO = [
    Group(
        ordinal=0,
        environment="digits",
        cell="n=3",
        index=0,
        rollouts=(
            rollout(0, num_tokens=4, reward=1.0, logprobs=np.full(4, -1, np.float32)),
            rollout(1, num_tokens=8, reward=0.5, logprobs=np.full(8, -2, np.float32), finish="length", env_s=4.0),
        ),
    ),
    Group(
        ordinal=1,
        environment="digits",
        cell="n=3",
        index=1,
        rollouts=tuple(rollout(i, num_tokens=2, reward=0.0, logprobs=np.full(2, -3, np.float32)) for i in range(2)),
    ),
]


def test_facts_of_what_was_drawn_are_those_counted_by_hand():
    assert drawing_facts(TWO, 2) == {
        "reward": 0.375,
        "pass@1": 0.25,
        "pass@2": 0.5,
        "with_signal": 0.5,
        "truncated": 0.25,
        "drawn_tokens": 16,
        "length": 4,
        "length_max": 8,
        "env_s": 1.0,
        "entropy": (4 * 1 + 8 * 2 + 4 * 3) / 16,
    }


def test_ages_are_those_of_the_tokens_that_the_model_drew():
    drawn = np.array([True, True, False, False, True, True])
    spans = (Span(begin=0, version=3), Span(begin=1, version=5), Span(begin=3, version=7))
    picked = [group(0, [1.0], num_tokens=6, drawn=drawn, spans=spans)]
    assert training_facts(picked, 12, 8, 4) == {
        "filled": 0.25,
        "trained_tokens": 4,
        "drawn_per_trained": 3,
        "age": (5 + 3 + 1 + 1) / 4,
        "age_max": 5,
    }


def test_what_the_environment_said_is_no_length_and_no_entropy():
    one = rollout(0, num_tokens=4, drawn=np.array([True, False, False, True]))
    facts = drawing_facts([Group(ordinal=0, environment="e", cell="c", index=0, rollouts=(one,))], 1)
    assert facts["length"] == 2
    assert facts["entropy"] == pytest.approx(-(one.logprobs[0] + one.logprobs[3]) / 2)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), min_size=1, max_size=9))
def test_each_answer_is_graded_once_under_another_prompt_of_its_cell(shapes: list[tuple[str, int]]):
    groups = []
    for ordinal, (cell, size) in enumerate(shapes):
        one = group(ordinal, [0.0] * size, cell=cell, num_tokens=1)
        texts = tuple(replace(item, text=f"{ordinal} {item.member}") for item in one.rollouts)
        groups.append(replace(one, rollouts=texts))
    graded: list[tuple[int, str]] = []

    def grade(under: Group, text: str) -> float:
        graded.append((under.ordinal, text))
        return 0.0

    shuffled_facts(groups, grade, 1)
    several = [place for place, (cell, _) in enumerate(shapes) if [cell for cell, _ in shapes].count(cell) > 1]
    assert sorted(text for _, text in graded) == sorted(
        item.text for place in several for item in groups[place].rollouts
    )
    for ordinal, text in graded:
        origin = int(text.split()[0])
        assert origin != ordinal
        assert shapes[origin][0] == shapes[ordinal][0]


def test_answers_that_fit_their_prompts_alone_pass_no_more_when_shuffled_and_guesses_as_often():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 4, 2000).tolist()
    reading, guessing = [], []
    for ordinal, key in enumerate(keys):
        one = group(ordinal, [1.0] * 4, num_tokens=1)
        reading.append(replace(one, rollouts=tuple(replace(item, text=str(ordinal)) for item in one.rollouts)))
        guesses = rng.integers(0, 4, 4).tolist()
        told = zip(one.rollouts, guesses, strict=True)
        rollouts = tuple(replace(item, text=str(guess), reward=float(guess == key)) for item, guess in told)
        guessing.append(replace(one, rollouts=rollouts))
    read = shuffled_facts(reading, lambda one, text: float(text == str(one.ordinal)), 4)
    assert read == {"pass@1_shuffled": 0, "pass@4_shuffled": 0}
    guessed = shuffled_facts(guessing, lambda one, text: float(text == str(keys[one.ordinal])), 4)
    true = drawing_facts(guessing, 4)
    assert guessed["pass@1_shuffled"] == pytest.approx(true["pass@1"], abs=0.02)
    assert guessed["pass@4_shuffled"] == pytest.approx(true["pass@4"], abs=0.03)


def test_groups_alone_in_their_cells_have_nothing_to_be_shuffled_with():
    assert shuffled_facts([group(0, cell="a"), group(1, cell="b")], lambda one, text: 1.0, 1) == {}


def facts(truncated: list[float], entropy: list[float]) -> list[dict[str, float]]:
    return [{"truncated": cut, "entropy": nats, "filled": 1.0} for cut, nats in zip(truncated, entropy, strict=True)]


@pytest.mark.parametrize(
    ("truncated", "entropy", "expected"),
    [
        ([0.1] * 5 + [0.3] * 5, [1.0] * 10, "30% of the answers are cut off at their limit, 10% were 5 steps before"),
        ([0.3] * 10, [1.0] * 10, None),
        ([0.1] * 5 + [0.19] * 5, [1.0] * 10, None),
        ([0.1] * 5 + [0.3] * 4, [1.0] * 9, None),
        ([0.0] * 20, [1.0] * 15 + [0.09] * 5, "the entropy has fallen from 1 to 0.09 nats a token"),
        ([0.0] * 20, [1.0] * 15 + [0.11] * 5, None),
    ],
)
def test_truncation_that_is_high_and_rises_and_entropy_that_is_lost_are_alarming(
    truncated: list[float], entropy: list[float], expected: str | None
):
    lines = alarms(facts(truncated, entropy))
    assert len(lines) == (expected is not None)
    assert expected is None or lines[0].startswith(expected)


@pytest.mark.parametrize(("filled", "expected"), [(0.6, 0), (0.4, 1)])
def test_steps_of_far_fewer_groups_than_are_asked_for_are_alarming(filled: float, expected: int):
    steps = [{"truncated": 0.0, "entropy": 1.0, "filled": share} for share in [0.1] * 5 + [filled] * 5]
    lines = alarms(steps)
    assert len(lines) == expected
    assert not lines or lines[0].startswith("steps are trained on 40% of the groups that are asked for")
