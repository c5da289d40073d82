"""Rollouts of a run whose weights came in the middle of answers, drawn once more from prompt, seed and spans."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exact_world import Plan, bits, draw_groups, open_engine, random_weights, small_model, update_after_steps
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rl_world import make_world, wait_for_training
from rl_world import settings as run_settings

from herd.engine.load import load
from herd.errors import HerdError
from herd.rl.journal import Journal
from herd.rl.record import Rollout, Span
from herd.rl.replay import redraw
from herd.rl.rollouts import Rollouts
from herd.stages.rl import JOURNAL, rl

pytestmark = pytest.mark.usefixtures("one_thread")


def shifted(rollout: Rollout, by: int) -> Rollout:
    """New weights come so many tokens later than they did."""
    first, *others = rollout.spans
    return replace(rollout, spans=(first, *(Span(begin=one.begin + by, version=one.version) for one in others)))


@given(
    after=st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True),
    slots=st.integers(2, 8),
    prefill=st.integers(4, 60),
    drafts=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
@example(after=[4, 9], slots=3, prefill=9, drafts=2, seed=0)
@settings(max_examples=2)
def test_answers_go_on_under_new_weights_at_the_same_token(
    after: list[int], slots: int, prefill: int, drafts: int, seed: int
) -> None:
    check_answers(after, slots, prefill, drafts, seed, 12)


@pytest.mark.slow
@given(
    after=st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True),
    slots=st.integers(1, 8),
    prefill=st.integers(1, 60),
    drafts=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=20)
def test_long_answers_go_on_under_new_weights_at_the_same_token(
    after: list[int], slots: int, prefill: int, drafts: int, seed: int
) -> None:
    check_answers(after, slots, prefill, drafts, seed, 40)


def check_answers(after: list[int], slots: int, prefill: int, drafts: int, seed: int, max_tokens: int) -> None:
    plan = Plan(
        slots=slots, prefill=prefill, mixed_prefill=prefill, drafts=drafts, drafts_itself=False, room=100.0,
        group_size=3, max_tokens=max_tokens, cells=("3", "1"), seed=seed,
    )  # fmt: skip
    model = small_model()
    weights = {step + 1: random_weights(model, step + 1) for step in after}
    with closing(open_engine(model, plan)) as engine:
        update_after_steps(engine, {version - 1: tensors for version, tensors in weights.items()})
        rollouts = [one for group in draw_groups(engine, plan) for one in group.rollouts]
    again = redraw(small_model(), rollouts, {0: random_weights(model, 0), **weights}.__getitem__)
    assert list(map(bits, again)) == list(map(bits, rollouts))


def check_run(folder: Path, monkeypatch: pytest.MonkeyPatch, at_least: int, **changes: object) -> None:
    """Draw all groups of an asynchronous run again, those that were not trained too."""
    world, versions, keep = make_world(folder), {}, Rollouts._keep

    def keep_and_record(self, version, tensors):
        versions[version] = {name: tensor.clone() for name, tensor in tensors.items()}
        keep(self, version, tensors)

    monkeypatch.setattr(Rollouts, "_keep", keep_and_record)
    wait_for_training(monkeypatch)
    # The rate is that of a run from random weights, so that versions differ.
    config = run_settings("exact_world:Chatting", mode="inflight", lag=2, slots=4, **changes)
    config = replace(config, optimizer=replace(config.optimizer, lr_scale=1.0))
    rl(config, *world, folder / "out")
    journal = Journal(folder / "out" / JOURNAL, read_only=True)
    rollouts = [one for ordinal in sorted(journal.finished) for one in journal.group(ordinal).rollouts]
    assert len(rollouts) >= at_least
    assert any(not one.drawn.all() for one in rollouts)
    several = [one for one in rollouts if len(one.spans) > 1]
    assert several
    model = load(world[0], dtype=torch.float32)
    for begin in range(0, len(rollouts), 100):
        part = rollouts[begin : begin + 100]
        assert list(map(bits, redraw(model, part, versions.__getitem__))) == list(map(bits, part))
    # With new weights one token later at least that token has another probability.
    tried = [one for one in several if one.spans[-1].begin + 1 < len(one.ids)][:50]
    drawn_before = [one for one in tried if one.drawn[one.spans[1].begin]]
    assert drawn_before
    for was, now in zip(
        drawn_before, redraw(model, [shifted(one, 1) for one in drawn_before], versions.__getitem__), strict=True
    ):
        begin = was.spans[1].begin
        assert bits(was) != bits(now)
        assert was.logprobs[:begin].tobytes() == now.logprobs[:begin].tobytes()
        assert was.logprobs[begin] != now.logprobs[begin]


def test_all_rollouts_of_a_run_with_weights_in_flight_are_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_run(tmp_path, monkeypatch, 18, num_steps=4, groups=2, group_size=3, max_tokens=20)


@pytest.mark.slow
def test_a_thousand_rollouts_of_a_run_with_weights_in_flight_are_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_run(tmp_path, monkeypatch, 1000, num_steps=64, groups=4, group_size=4, max_tokens=30)


def test_a_prompt_with_a_picture_is_refused(tmp_path: Path) -> None:
    model = small_model()
    with closing(open_engine(model, PICTURED)) as engine:
        [one, *_] = draw_groups(engine, PICTURED)[0].rollouts
    pictured = replace(one, prompt=one.prompt.clip(model.config.special.patch))
    with pytest.raises(HerdError, match="has a picture"):
        redraw(model, [pictured], lambda version: model.transformer.state_dict())


PICTURED = Plan(
    slots=2, prefill=9, mixed_prefill=9, drafts=0, drafts_itself=False, room=9.0, group_size=2, max_tokens=2,
    cells=("1",), seed=0,
)  # fmt: skip
