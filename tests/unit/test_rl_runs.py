"""Whole runs of `herd rl` on a model of random weights: exact, replayable, and clear where they fail."""

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rl_world import (
    Hanging,
    Jittered,
    Raising,
    Same,
    Sometimes,
    Talking,
    Wandering,
    Wrong,
    make_brief_world,
    make_world,
    settings,
    wait_for_training,
)

from herd.config.rl_loss import PolicyLossConfig
from herd.errors import HerdError
from herd.rl.journal import Journal
from herd.stages.rl import JOURNAL, rl


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("rl"))


@pytest.fixture(scope="module")
def brief_world(tmp_path_factory):
    return make_brief_world(tmp_path_factory.mktemp("rl"))


def run(config, world, out: Path) -> Journal:
    rl(config, *world, out)
    return Journal(out / JOURNAL, read_only=True)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_lag_0_through_the_asynchronous_machinery_is_sync_whatever_the_timing(world, tmp_path, one_thread):
    synchronous = run(settings(num_steps=4), world, tmp_path / "sync").published
    for name in ("a", "b"):
        config = settings(Jittered, num_steps=4, mode="pinned", lag=0)
        assert run(config, world, tmp_path / name).published == synchronous
    assert len(set(synchronous.values())) == 5


@pytest.mark.parametrize("lag", [1, 3])
def test_a_pinned_run_is_a_function_of_its_seed_whatever_the_timing(world, tmp_path, lag, one_thread):
    runs = [run(settings(Jittered, num_steps=5, mode="pinned", lag=lag), world, tmp_path / name) for name in "abc"]
    assert runs[0].published == runs[1].published == runs[2].published
    for step, ordinals in runs[0].picked.items():
        versions = {int(v) for one in ordinals for r in runs[0].group(one).rollouts for v in r.versions()}
        assert versions == {max(0, step - lag)}


def test_on_policy_every_ratio_is_1_to_the_bit_in_fp32(world, tmp_path, one_thread):
    run(settings(exact=True, num_steps=4), world, tmp_path / "out")
    for step in metrics(tmp_path / "out"):
        assert (step["ratio"], step["ratio_squared"], step["k3"]) == (1, 1, 0)
        assert step["engine_gap"] < 1e-5
        assert step["grad_norm"] > 0


def test_by_older_weights_the_ratio_is_not_1(world, tmp_path, one_thread):
    run(settings(exact=True, num_steps=4, mode="pinned", lag=2), world, tmp_path / "out")
    assert [step["k3"] > 0 for step in metrics(tmp_path / "out")] == [False, True, True, True]


def test_a_teacher_and_a_reference_pull_once_the_model_has_left_them(world, tmp_path, one_thread):
    plain = run(settings(exact=True), world, tmp_path / "plain").published
    for name, changes in {
        "teacher": {"teacher": str(world[0])},
        "reference": {"loss": PolicyLossConfig(reference_kl=1.0)},
    }.items():
        pulled = run(settings(exact=True, **changes), world, tmp_path / name).published
        assert pulled[1] == plain[1]  # the model itself: no difference to be paid for
        assert pulled[2] != plain[2]
    assert [step["reference_k3"] > 0 for step in metrics(tmp_path / "reference")] == [False, True, True]


def test_a_quantised_engine_is_packed_again_at_each_update_and_corrected_for(world, tmp_path, one_thread):
    config = settings(quantize="int8", dtype="bfloat16", num_steps=4)
    journal = run(config, world, tmp_path / "out")
    assert len(set(journal.published.values())) == 5
    # On policy but for the rounding; the first weights give all tokens the same probability.
    assert [0 < step["k3"] < 0.05 for step in metrics(tmp_path / "out")] == [False, True, True, True]


def test_answers_in_flight_have_spans_and_the_journal_gives_the_same_weights(world, tmp_path, one_thread, monkeypatch):
    config = settings(Jittered, num_steps=8, mode="inflight", lag=2, max_tokens=24, slots=4)
    with monkeypatch.context() as patch:
        wait_for_training(patch)
        journal = run(config, world, tmp_path / "out")
    spans = [r.spans for step in journal.picked.values() for one in step for r in journal.group(one).rollouts]
    assert any(len(one) > 1 for one in spans)
    assert all(np.all(np.diff([span.version for span in one]) > 0) for one in spans)
    # Only the journal is left: nothing is drawn, and each version has its digest, or the run would stop.
    work = tmp_path / "again.partial"
    work.mkdir()
    shutil.copy(tmp_path / "out" / JOURNAL, work / JOURNAL)
    again = run(config, world, tmp_path / "again")
    assert (again.published, again.picked) == (journal.published, journal.picked)
    assert again.admitted == journal.admitted


def test_a_journal_of_other_settings_is_refused(world, tmp_path, one_thread):
    run(settings(num_steps=2), world, tmp_path / "out")
    for name, changes in {
        "seed": {"seed": 1},
        "rate": {"optimizer": replace(settings().optimizer, lr_scale=1.0)},
    }.items():
        work = tmp_path / f"{name}.partial"
        work.mkdir()
        shutil.copy(tmp_path / "out" / JOURNAL, work / JOURNAL)
        with pytest.raises(HerdError, match=r"of another run|is not what was trained before"):
            run(settings(num_steps=2, **changes), world, tmp_path / name)


def test_several_turns_are_one_sequence_of_which_the_drawn_tokens_are_learnt(brief_world, tmp_path, one_thread):
    journal = run(settings(Talking, num_steps=2, max_tokens=60, exact=True), brief_world, tmp_path / "out")
    rollouts = [r for step in journal.picked.values() for one in step for r in journal.group(one).rollouts]
    assert any(not r.drawn.all() for r in rollouts)
    assert all((r.logprobs[~r.drawn] == 0).all() and (r.logprobs[r.drawn] < 0).all() for r in rollouts)
    assert all(step["k3"] == 0 for step in metrics(tmp_path / "out"))


def test_several_turns_are_drawn_by_the_same_weights_where_these_are_pinned(brief_world, tmp_path, one_thread):
    runs = [
        run(settings(Wandering, num_steps=2, max_tokens=60, mode="pinned", lag=1), brief_world, tmp_path / name)
        for name in "ab"
    ]
    assert runs[0].published == runs[1].published
    for ordinal in runs[0].finished:
        assert {one.spans[0].version for one in runs[0].group(ordinal).rollouts} == {runs[0].admitted[ordinal].version}
        assert all(len(one.spans) == 1 for one in runs[0].group(ordinal).rollouts)


def test_an_environment_that_recovers_is_asked_again_and_one_that_does_not_ends_the_run(world, tmp_path, one_thread):
    Sometimes.asked.clear()
    journal = run(settings(Sometimes), world, tmp_path / "recovers")
    assert {r.attempt for one in journal.finished for r in journal.group(one).rollouts} == {1}
    with pytest.raises(HerdError, match=r"groups of rl_world:Raising hard failed.*the sandbox is gone"):
        run(settings(Raising, num_steps=60), world, tmp_path / "raises")


def test_rewards_that_cannot_be_end_the_run(world, tmp_path, one_thread):
    with pytest.raises(HerdError, match=r"3 groups in a row are invalid.*reward nan"):
        run(settings(Wrong), world, tmp_path / "out")


def test_equal_rewards_are_no_signal_and_a_run_without_any_ends(world, tmp_path, one_thread):
    with pytest.raises(HerdError, match=r"20 times in a row all answers to a prompt had the same reward.*Same easy 0"):
        run(settings(Same, max_tokens=2), world, tmp_path / "out")


def test_a_hanging_environment_ends_in_its_time_limit(world, tmp_path, one_thread):
    begin = time.monotonic()
    with pytest.raises(HerdError, match=r"env_timeout_s=0\.05"):
        run(settings(Hanging, env_timeout_s=0.05, env_attempts=2, groups=12), world, tmp_path / "out")
    assert time.monotonic() - begin < 30


def test_weights_that_arrive_changed_are_refused(world, tmp_path, monkeypatch, one_thread):
    from herd.engine import engine as module

    replace_weights = module.replace_weights

    def without_an_expert(transformer, tensors):
        name = next(name for name in tensors if name.endswith("EDF"))
        replace_weights(transformer, {**tensors, name: tensors[name].flip(0)})

    monkeypatch.setattr(module, "replace_weights", without_an_expert)
    with pytest.raises(HerdError, match="the engine holds other weights"):
        run(settings(), world, tmp_path / "out")


def test_the_run_leaves_while_an_environment_hangs(world, tmp_path, one_thread):
    import os
    import signal

    timer = threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    begin = time.monotonic()
    with pytest.raises(BaseException, match="stopped as asked"):
        rl(settings(Hanging), *world, tmp_path / "out")
    assert time.monotonic() - begin < 20
    timer.cancel()
