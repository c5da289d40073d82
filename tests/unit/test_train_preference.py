"""Pairs of answers: what of them is learnt, how batches of them are cut, what the reference says, and when to stop."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from herd.config import DpoConfig, ParallelConfig
from herd.core.batch import split_batch
from herd.core.metrics import Mean
from herd.data.loading.pair_batches import Pair, PairBatch, PairBatches, ReadBatches, TokenPair, tokenize_pairs
from herd.data.media.image import ImageProcessor
from herd.engine.load import load
from herd.errors import HerdError, Stopped
from herd.model.parallel.mesh import Mesh
from herd.model.parallel.pieces import share
from herd.model.transformer import Transformer
from herd.train import reference as reference_module
from herd.train.loop import ENDED
from herd.train.preference import preference_loss, robust_loss, sigmoid_loss
from herd.train.reference import reference_logprobs
from herd.train.stop_rules import WINDOW, StopRules

CONFIG = DpoConfig(batch_pairs=4, max_steps=100, dtype="float32")


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def pairs_of(count: int) -> list[Pair]:
    """Answers of uneven length; every fifth is held out."""
    return [
        Pair(
            prompt=[said("user", f"the cat {number}")],
            chosen=[said("assistant", "sat on the mat " * (number % 3 + 1))],
            rejected=[said("assistant", "Hund " * (number % 4 + 1))],
            heldout=number % 5 == 4,
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def tokens(tiny_folder: Path) -> list[TokenPair]:
    return tokenized(tiny_folder, pairs_of(23))[0]


def tokenized(folder: Path, pairs: list[Pair], context: int = 200) -> tuple[list[TokenPair], dict[str, int]]:
    model = load(folder)
    return tokenize_pairs(pairs, model.tokenizer, ImageProcessor(model.config.vision), context)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Transformer:
    return load(tiny_folder, dtype=torch.float32).transformer.requires_grad_()


def zeros(pairs: list[TokenPair]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [tuple(np.zeros(int(one.learnt.sum()), np.float32) for one in pair.both) for pair in pairs]  # type: ignore[misc]


def test_the_last_answer_is_learnt_with_its_end_token_and_earlier_ones_are_not(tiny_folder: Path) -> None:
    tokenizer = load(tiny_folder).tokenizer
    prompt = [said("system", "be a cat"), said("user", "the"), said("assistant", "mat"), said("user", "cat")]
    pair = Pair(prompt=prompt, chosen=[said("assistant", "sat")], rejected=[said("assistant", "Hund")])
    [one], left_out = tokenized(tiny_folder, [pair])
    for sample, text in ((one.chosen, "sat"), (one.rejected, "Hund")):
        end = tokenizer.special["<|eot|>"]
        assert sample.ids[sample.learnt].tolist()[-1] == end
        assert tokenizer.decode(sample.ids[sample.learnt][:-1].tolist()).strip() == text
    assert not left_out


def test_pairs_that_cannot_be_trained_on_are_left_out_and_counted(tiny_folder: Path) -> None:
    long = replace(pairs_of(1)[0], rejected=[said("assistant", "Hund " * 100)])
    kept, left_out = tokenized(tiny_folder, [pairs_of(1)[0], long], context=60)
    assert len(kept) == 1
    assert left_out == {"pairs of more than context=60 tokens": 1}


def test_each_training_pair_comes_once_an_epoch_and_held_out_pairs_apart(tokens: list[TokenPair]) -> None:
    batches = PairBatches(tokens, zeros(tokens), replace(CONFIG, epochs=2))
    order = np.concatenate(batches.steps)
    train = [number for number, pair in enumerate(tokens) if not pair.heldout]
    assert sorted(order.tolist()) == sorted(train * 2)
    assert sorted(order[: len(train)].tolist()) == train
    heldout = PairBatches(tokens, zeros(tokens), CONFIG, heldout=True)
    assert np.concatenate(heldout.steps).tolist() == [4, 9, 14, 19]
    assert PairBatches(tokens, zeros(tokens), replace(CONFIG, max_steps=2)).num_steps == 2


def random_reference(pairs: list[TokenPair]) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [tuple(-rng.random(len(one)).astype(np.float32) * 8 for one in pair) for pair in zeros(pairs)]  # type: ignore[misc]


def gradients(model: Transformer, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([one.flatten() for one in found if one is not None])


def test_the_parts_of_a_batch_are_whole_pairs_and_add_up(tokens: list[TokenPair], model: Transformer) -> None:
    batch = PairBatches(tokens, random_reference(tokens), replace(CONFIG, batch_pairs=7)).batch(0)
    loss_fn = preference_loss(replace(CONFIG, loss="ipo"))
    loss, metrics = loss_fn(model, batch)
    parts = split_batch(batch, 3)
    assert all((len(part.starts_S) - 1) % 2 == 0 for part in parts)
    assert sum(len(part.starts_S) - 1 for part in parts) == 14
    summed: dict[str, Any] = {}
    total = torch.zeros(())
    for part in parts:
        of_part, counted = loss_fn(model, part)
        total = total + of_part
        summed = {name: summed[name] + one if name in summed else one for name, one in counted.items()}
    assert float(total.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert {k: v.value for k, v in summed.items()} == pytest.approx({k: v.value for k, v in metrics.items()}, rel=1e-4)  # type: ignore[union-attr]
    whole, added = gradients(model, loss), gradients(model, total)
    assert float((whole - added).norm() / whole.norm()) < 1e-4


def test_ranks_get_whole_pairs(tokens: list[TokenPair]) -> None:
    batch = PairBatches(tokens, zeros(tokens), replace(CONFIG, batch_pairs=7)).batch(0)
    mesh = Mesh(ParallelConfig())
    mesh.sizes["shard"] = 3
    parts: list[PairBatch] = []
    for rank in range(3):
        mesh.place["shard"] = rank
        parts.append(share(batch, mesh, 64))
    assert torch.equal(torch.cat([part.tokens_N for part in parts]), batch.tokens_N)
    assert [(len(part.starts_S) - 1) % 2 for part in parts] == [0, 0, 0]
    assert {part.num_pairs for part in parts} == {7}


@pytest.mark.parametrize("axis", ["context", "tensor"])
def test_ranks_that_cut_answers_are_refused(axis: str) -> None:
    parallel = SimpleNamespace(mesh=SimpleNamespace(sizes={"context": 1, "tensor": 1, axis: 2}))
    with pytest.raises(HerdError, match=f"set parallel.{axis}=1"):
        preference_loss(CONFIG, parallel)  # type: ignore[arg-type]


def test_the_metrics_are_those_of_the_models_own_log_probabilities(tokens: list[TokenPair], model: Transformer) -> None:
    known = random_reference(tokens)
    batches = PairBatches(tokens, known, replace(CONFIG, batch_pairs=5))
    batch, numbers = batches.batch(1), batches.steps[1].tolist()
    _, metrics = preference_loss(CONFIG)(model, batch)
    rewards, ends, away = [], [], []
    for number in numbers:
        for sample, reference in zip(tokens[number].both, known[number], strict=True):
            ids = torch.from_numpy(sample.ids.astype(np.int64))
            with torch.no_grad():
                hidden = model(ids, positions_N=torch.arange(len(ids)), starts_S=torch.tensor([0, len(ids)]).int())
                log = torch.log_softmax(model.unembed(hidden), -1)[:-1].gather(1, ids[1:, None])[:, 0]
            ratio = log[torch.from_numpy(sample.learnt[1:])].numpy() - reference
            rewards.append(0.1 * ratio.sum())
            away += ratio.tolist()
            if len(rewards) % 2:
                ends.append(ratio[-1])
    margins = np.array(rewards[::2]) - np.array(rewards[1::2])
    wanted = {
        "chosen_reward": np.mean(rewards[::2]), "rejected_reward": np.mean(rewards[1::2]), "margin": margins.mean(),
        "accuracy": (margins > 0).mean(), "end_change": np.mean(ends),
        "kl": np.mean(np.square(away)) / 2,
    }  # fmt: skip
    assert {name: metrics[name].value for name in wanted} == pytest.approx(wanted, rel=1e-3)  # type: ignore[union-attr]


def test_the_robust_loss_of_swapped_labels_is_the_loss_of_right_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    for wrong in (0.1, 0.4):
        right, swapped = robust_loss(chosen, rejected, 0.5, wrong), robust_loss(rejected, chosen, 0.5, wrong)
        assert torch.allclose((1 - wrong) * right + wrong * swapped, sigmoid_loss(chosen, rejected, 0.5))


def test_the_reference_is_read_once_and_goes_on_where_it_was_stopped(
    tokens: list[TokenPair], model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadBatches, "CHUNK_PAIRS", 4)
    whole = reference_logprobs(model, tokens, tmp_path / "whole", "one")
    read, calls = reference_module._read, []

    def stopping(*args: Any) -> np.ndarray:
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(*args)

    monkeypatch.setattr(reference_module, "_read", stopping)
    with pytest.raises(Stopped, match="what was read is kept: re-run the same command to resume"):
        reference_logprobs(model, tokens, tmp_path / "stopped", "one")
    assert len(calls) == 3
    again = reference_logprobs(model, tokens, tmp_path / "stopped", "one")
    assert len(calls) == 6  # of 6 batches, none twice
    for one, other in zip(whole, again, strict=True):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
    reference_logprobs(model, tokens, tmp_path / "stopped", "one")
    assert len(calls) == 6
    reference_logprobs(model, tokens, tmp_path / "stopped", "another model")
    assert len(calls) == 12

    batch = PairBatches(tokens, whole, replace(CONFIG, batch_pairs=18)).batch(0)
    metrics = preference_loss(CONFIG)(model, batch)[1]
    assert all(abs(metrics[name].value) < 1e-4 for name in ("margin", "end_change", "kl"))  # type: ignore[union-attr]


def follow(rules: StopRules, changes: list[tuple[float, float]]) -> list[int]:
    """The steps at which the rules end a training whose batches have such end changes and divergences."""
    ended = []
    for step, (end_change, kl) in enumerate(changes):
        means = {"end_change": Mean(torch.tensor(4 * end_change), 4), "kl": Mean(torch.tensor(9 * kl), 9)}
        loss = torch.zeros((), requires_grad=True) * 1
        rules.watch(lambda *_, loss=loss, means=means: (loss, means))(None, None)  # type: ignore[arg-type]
        rules.watch(lambda *_: (torch.zeros(()), {}))(None, None)  # type: ignore[arg-type]  # without gradient
        if ENDED in rules.after_step(step, None, updated=True):  # type: ignore[arg-type]
            ended.append(step)
    return ended


def test_a_training_ends_when_the_end_token_or_the_divergence_has_gone_too_far() -> None:
    device = torch.device("cpu")
    assert follow(StopRules(CONFIG, device), [(-0.09, 0.09)] * 30) == []
    assert follow(StopRules(CONFIG, device), [(0.0, 0.0)] * 10 + [(-0.21, 0.0)] * 5)[0] == 11  # 2 of 4 steps
    rules = StopRules(CONFIG, device)
    assert follow(rules, [(0.0, 0.0)] * 10 + [(0.0, 0.5)] * 1) == [10]
    assert rules.reason.startswith("the KL divergence from the reference is about 0.")
    assert follow(StopRules(CONFIG, device), [(-9.0, 9.0)] * (WINDOW - 1)) == []


def test_a_resumed_training_ends_where_the_undisturbed_one_does() -> None:
    changes = [(-0.015 * step, 0.0) for step in range(20)]
    whole = follow(StopRules(CONFIG, torch.device("cpu")), changes)[0]
    assert whole > WINDOW
    for cut in (3, WINDOW, whole - 1):
        before, after = (StopRules(CONFIG, torch.device("cpu")) for _ in range(2))
        follow(before, changes[:cut])
        after.load_state_dict(before.state_dict())
        assert cut + follow(after, changes[cut:])[0] == whole


def test_balancing_is_refused_as_the_reference_has_other_choices_then() -> None:
    with pytest.raises(HerdError, match=r"bias_update_rate=0\.05 would change the routers' choices: set it to 0"):
        DpoConfig(bias_update_rate=0.05)
