"""The parts of a run that need no run: cells, packing, what is watched."""

import numpy as np
import pytest
from rl_groups import group

from herd.config import RlConfig
from herd.errors import HerdError
from herd.rl.batches import at_targets
from herd.rl.draw import InvalidGroup, check


def test_what_a_token_has_stands_where_it_is_the_target():
    assert at_targets(np.array([7, 8, 9]), 2).tolist() == [0, 7, 8, 9, 0]


def test_figures_that_cannot_be_are_invalid():
    [rollout, *_] = group(0).rollouts
    check(rollout)
    for name, value in {"reward": float("inf"), "logprobs": rollout.logprobs + np.float32(np.nan)}.items():
        with pytest.raises(InvalidGroup, match=r"inf|nan"):
            check(type(rollout)(**{**vars(rollout), name: value}))
    with pytest.raises(InvalidGroup, match="log-probability"):
        check(type(rollout)(**{**vars(rollout), "logprobs": np.abs(rollout.logprobs) + 1}))


def test_settings_that_make_no_sense_are_refused():
    for changes, match in (
        ({"environments": ()}, "environments is empty"),
        ({"group_size": 1}, "no answers to compare"),
        ({"bias_update_rate": 0.1}, "other experts"),
        ({"balance_coefficient": 0.1}, "no such term"),
    ):
        with pytest.raises(HerdError, match=match):
            RlConfig(**changes)


def test_environments_may_have_shares():
    shares = RlConfig(environments=("digits=3", "mine:Shop", "search")).shares()
    assert shares == {"digits": 0.6, "mine:Shop": 0.2, "search": 0.2}
