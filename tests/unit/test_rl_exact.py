"""On policy the trainer's reader gives each drawn token the log-probability that was recorded, to the bit, however the
engine's steps were cut."""

from collections import Counter
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
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
from hypothesis import Phase, example, given, seed, settings
from hypothesis import strategies as st

from herd.engine.load import Model
from herd.engine.sampler import SamplingParams, choice_seeds
from herd.model.cache import CacheView, KVCache
from herd.model.pack import Pack
from herd.train.sharing import share_prompts
from herd.train.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")

CROWDED = Plan(
    slots=17, prefill=50, mixed_prefill=9, drafts=3, drafts_itself=True, room=1.0, group_size=6, max_tokens=60,
    cells=("1",) * 6, seed=0,
)  # fmt: skip
"""Preempts, drafts, and has answers of several turns."""
LONG = replace(CROWDED, cells=("300",), drafts=0, prefill=700, slots=2, group_size=2)
"""A prompt of more keys than attention adds up in one piece."""
BRIEF = replace(CROWDED, cells=("1",) * 2, max_tokens=30)
"""Does the same in a sixth of the tokens."""
EASY = {"slots": 1, "drafts": 0, "room": 100.0, "prefill": 2048, "mixed_prefill": 512}


def check(model: Model, plan: Plan, counted: Counter[str]) -> None:
    """What is drawn has the bits of the trainer's reader, and those of one answer after the other."""
    groups = draw(model, plan, counted)
    assert same_bits(*read_again(model, groups))
    alone = draw(model, replace(plan, **EASY), Counter())
    assert [[bits(one) for one in group.rollouts] for group in groups] == [
        [bits(one) for one in group.rollouts] for group in alone
    ]


def check_many(
    max_examples: int, examples: st.SearchStrategy[Plan], crowded: Plan, long: Plan, enough: int, seed_: int = 0,
    **options: Any,
) -> Counter[str]:  # fmt: skip
    """Until `enough` tokens were drawn."""
    model, counted = small_model(), Counter[str]()

    @seed(seed_)
    @settings(max_examples=max_examples, **options)
    @given(examples)
    @example(long)
    @example(crowded)
    def each(plan: Plan) -> None:
        if counted["tokens"] < enough:
            check(model, plan, counted)

    each()
    assert min(counted[name] for name in ("preempted", "accepted", "turns")) > 0
    assert counted["tokens"] >= enough
    return counted


def test_what_an_engine_of_any_settings_draws_has_the_same_bits_when_it_is_read() -> None:
    check_many(2, plans(1, 8), BRIEF, replace(LONG, max_tokens=6), 200)


def test_the_reader_reads_a_groups_prompt_once_and_each_answer_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    plan = replace(CROWDED, drafts=0, room=100.0, prefill=500, cells=("3", "1", "3"), group_size=4, max_tokens=6)
    batch, num_read, view = packed(draw(model, plan, Counter())), Counter[bool](), KVCache.view
    drawn_N, starts = batch.weights_N != 0, batch.starts_S.tolist()
    prompts = [int((batch.prompts_N[begin:end] >= 0).sum()) for begin, end in pairwise(starts)]
    read = {}
    for once in (False, True):

        def count(self: KVCache, pack: Pack, *pages: Any, once: bool = once) -> CacheView:
            num_read[once] += len(pack.tokens_N)
            return view(self, pack, *pages)

        monkeypatch.setattr(KVCache, "view", count)
        sharing = share_prompts(batch.prompts_N, batch.starts_S, torch.device("cpu")) if once else None
        read[once] = Teacher(model.transformer, as_drawn=True).logprobs(batch, sharing)
        assert read[once][~drawn_N].isnan().all()
    assert same_bits(read[False][drawn_N], read[True][drawn_N])
    assert num_read[False] - num_read[True] == sum(prompts) - sum(prompts[:: plan.group_size])


def test_a_rollout_of_several_turns_has_the_place_and_the_seed_of_its_first() -> None:
    groups = draw(small_model(), replace(BRIEF, **EASY), Counter())
    assert any(not one.drawn.all() for group in groups for one in group.rollouts)
    for group, admitted in zip(groups, admissions(BRIEF), strict=True):
        assert [one.member for one in group.rollouts] == list(range(CROWDED.group_size))
        assert [one.seed for one in group.rollouts] == choice_seeds(admitted.seed, CROWDED.group_size)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_a_hundred_thousand_tokens_of_engines_of_any_settings_have_the_same_bits_when_they_are_read(part: int) -> None:
    """5,000 tokens a part, so that each ends in minutes and a part can be run again by itself."""
    counted = check_many(
        200, plans(12), CROWDED, LONG, 5000, part, phases=(Phase.explicit, Phase.generate), database=None
    )
    print(f"part {part}: {dict(counted)}")


def test_new_weights_draw_from_no_prefix_that_older_ones_read() -> None:
    model, plan = small_model(), replace(CROWDED, room=100.0, cells=("1", "3"), group_size=3, max_tokens=8)
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
    model, plan = (
        small_model(),
        replace(CROWDED, cells=("12", "3"), group_size=2, prefill=prefill, mixed_prefill=prefill, drafts=0),
    )
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
