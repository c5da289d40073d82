"""On policy the trainer's reader gives each drawn token the log-probability that was recorded, to the bit, however the
engine's steps were cut."""

from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest
from exact_world import (
    Plan,
    Repeating,
    admissions,
    bits,
    draw,
    draw_groups,
    open_engine,
    packed,
    plans,
    random_weights,
    read_again,
    same_bits,
    small_model,
    update_after_steps,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from herd.engine.load import Model
from herd.engine.sampler import SamplingParams, choice_seeds

pytestmark = pytest.mark.usefixtures("one_thread")

CROWDED = Plan(
    slots=17, prefill=50, mixed_prefill=9, drafts=3, drafts_itself=True, room=1.0, group_size=6, max_tokens=60,
    cells=("1",) * 6, seed=0,
)  # fmt: skip
"""Preempts, drafts, and has answers of several turns."""
LONG = replace(CROWDED, cells=("300",), drafts=0, prefill=700, slots=2, group_size=2)
"""A prompt of more keys than attention adds up in one piece."""
EASY = {"slots": 1, "drafts": 0, "room": 100.0, "prefill": 2048, "mixed_prefill": 512}


def check(model: Model, plan: Plan, counted: Counter[str]) -> None:
    """What is drawn has the bits of the trainer's reader, and those of one answer after the other."""
    groups = draw(model, plan, counted)
    assert same_bits(*read_again(model, groups))
    alone = draw(model, replace(plan, **EASY), Counter())
    assert [[bits(one) for one in group.rollouts] for group in groups] == [
        [bits(one) for one in group.rollouts] for group in alone
    ]


def check_many(max_examples: int, num_groups: int) -> Counter[str]:
    model, counted = small_model(), Counter[str]()

    @settings(max_examples=max_examples)
    @given(plans(num_groups))
    @example(CROWDED)
    @example(LONG)
    def each(plan: Plan) -> None:
        check(model, plan, counted)

    each()
    assert min(counted[name] for name in ("preempted", "accepted", "turns")) > 0
    return counted


def test_what_an_engine_of_any_settings_draws_has_the_same_bits_when_it_is_read() -> None:
    assert check_many(3, 3)["tokens"] > 1200


def test_a_rollout_of_several_turns_has_the_place_and_the_seed_of_its_first() -> None:
    groups = draw(small_model(), replace(CROWDED, **EASY), Counter())
    assert any(not one.drawn.all() for group in groups for one in group.rollouts)
    for group, admitted in zip(groups, admissions(CROWDED), strict=True):
        assert [one.member for one in group.rollouts] == list(range(CROWDED.group_size))
        assert [one.seed for one in group.rollouts] == choice_seeds(admitted.seed, CROWDED.group_size)


@pytest.mark.slow
def test_a_hundred_thousand_tokens_of_engines_of_any_settings_have_the_same_bits_when_they_are_read() -> None:
    assert check_many(100, 24)["tokens"] >= 100_000


def test_new_weights_draw_from_no_prefix_that_older_ones_read() -> None:
    model, plan = small_model(), replace(CROWDED, room=100.0, cells=("1", "3"))
    with closing(open_engine(model, plan)) as engine:
        before = draw_groups(engine, plan)
        assert engine.stats()["shared_bytes"] > 0
        for version in (1, 2):
            engine.update_weights(version, random_weights(model, version))
            groups = draw_groups(engine, plan)
            recorded, again = read_again(model, groups)
            assert same_bits(recorded, again)
            assert [one.rollouts[0].prompt.tolist() for one in groups] == [
                one.rollouts[0].prompt.tolist() for one in before
            ]
            assert not same_bits(recorded[:8], packed(before).logprobs_N[packed(before).weights_N != 0][:8])


@given(after=st.lists(st.integers(0, 24), min_size=1, max_size=3, unique=True), prefill=st.integers(1, 40))
@settings(max_examples=4)
def test_a_prompt_is_read_by_the_weights_that_draw_behind_it(after: list[int], prefill: int) -> None:
    model, plan = small_model(), replace(CROWDED, cells=("12", "3"), prefill=prefill, mixed_prefill=prefill, drafts=0)
    newest = small_model()
    with closing(open_engine(model, replace(plan, room=100.0))) as engine:
        update_after_steps(engine, {step: random_weights(model, step + 1) for step in after})
        groups = draw_groups(engine, replace(plan, max_tokens=1))
    for group in groups:
        for one in group.rollouts:
            [span] = one.spans
            newest.transformer.load_state_dict(random_weights(newest, span.version))
            assert same_bits(*read_again(newest, [replace(group, rollouts=(one,))]))


def test_log_probabilities_of_prompts_are_given_once_and_whole_where_they_are_read_again() -> None:
    model, plan = small_model(), replace(CROWDED, drafts=0)
    prompts = [model.render(Repeating().prompt("1", index)) for index in range(8)]
    params = SamplingParams(temperature=1.0, max_tokens=60, prompt_logprobs=True)
    read = []
    for room in (100.0, 1.0):
        with closing(open_engine(model, replace(plan, room=room))) as engine:
            requests = [engine.submit(prompt, params, seed=seed) for seed, prompt in enumerate(prompts)]
            read.append([request.result()[0].prompt_logprobs for request in requests])
            preempted = engine.stats()["preempted"]
    assert preempted > 0
    assert list(map(len, read[0])) == [len(prompt.token_ids) - 1 for prompt in prompts]
    assert read[0] == read[1]
