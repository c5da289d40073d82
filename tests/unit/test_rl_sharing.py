"""Prompts that are computed once a group: the same loss and gradient, from fewer tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_groups import group
from rl_world import make_world

from herd.config.rl_loss import PolicyLossConfig
from herd.engine.load import load
from herd.rl.advantages import mean_centred
from herd.rl.batches import pack_groups
from herd.rl.loss import policy_loss
from herd.train.sharing import share_prompts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, _ = make_world(tmp_path_factory.mktemp("sharing"))
    return load(folder, dtype=torch.float64).transformer.train().requires_grad_(True)


def packed(ordinals, lengths, seed=0):
    """Groups of a prompt and answers of these lengths; a group of the same number has the same prompt."""
    rng = np.random.default_rng(seed)
    groups = []
    for ordinal, (prompt, answers) in zip(ordinals, lengths, strict=True):
        ids = rng.integers(10, 300, prompt).astype(np.uint32)
        made = group(ordinal, [0.0] * len(answers))
        rollouts = tuple(
            replace(
                one, prompt=ids, ids=rng.integers(10, 300, length).astype(np.uint32), drawn=np.ones(length, dtype=bool),
                logprobs=-rng.random(length).astype(np.float32), reward=float(place % 2),
            )
            for place, (one, length) in enumerate(zip(made.rollouts, answers, strict=True))
        )  # fmt: skip
        groups.append(replace(made, rollouts=rollouts))
    return pack_groups(groups, mean_centred, lambda _: None, None)


shapes = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=4)), min_size=1, max_size=4
)


@settings(max_examples=12)
@given(shapes)
def test_loss_and_gradient_are_those_of_prompts_computed_each_time(model, lengths):
    batch = packed(range(len(lengths)), lengths)
    found = []
    for one in (batch, replace(batch, prompts_N=None)):
        model.zero_grad()
        loss, _ = policy_loss(PolicyLossConfig())(model, one)
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (ours, gradient), (theirs, other) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (gradient - other).norm() <= 1e-6 * other.norm() + 1e-12


def test_each_prompt_is_computed_once_and_nothing_else_is_shared():
    batch = packed([4, 7], [(5, [3, 2, 6]), (4, [2, 2])])
    sharing = share_prompts(batch.prompts_N, batch.starts_S, CPU, batch.routes_NJ)
    assert len(sharing.pick_M) == 5 + 4 + (3 + 2 + 6) + (2 + 2)
    assert torch.equal(batch.tokens_N[sharing.pick_M][sharing.expand_N], batch.tokens_N)
    assert torch.equal(batch.positions_N[sharing.pick_M][sharing.expand_N], batch.positions_N)


def test_single_answers_share_nothing():
    other = packed([0, 1], [(5, [3]), (5, [3])])
    assert share_prompts(other.prompts_N, other.starts_S, CPU) is None
