"""The loss of online RL: what it minimises, what it records, and that neither depends on how a step is cut."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from herd.config.rl_loss import CorrectionConfig, CorrectionName, PolicyLossConfig
from herd.core.batch import slice_batch, split_batch
from herd.core.metrics import Mean
from herd.errors import HerdError
from herd.model.transformer import Transformer
from herd.rl.loss import RolloutBatch, effective_share, policy_loss
from herd.train import losses

LENGTHS = (9, 14, 5, 11, 7)
VOCAB = 30


class Head(Transformer):
    """The hidden states are the tokens' embeddings, in fp64."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Embedding(VOCAB, 8, dtype=torch.float64)
        self.unembedding = torch.nn.Linear(8, VOCAB, bias=False, dtype=torch.float64)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, tokens_N: Tensor, **_: object) -> Tensor:
        hidden_ND: Tensor = self.embedding(tokens_N)
        return hidden_ND

    def logprobs(self, batch: RolloutBatch) -> Tensor:
        log_NV = torch.log_softmax(self(batch.tokens_N) @ self.unembedding.weight.T, -1)
        return log_NV.gather(1, batch.targets_N[:, None])[:, 0]


def rollouts(model: Head, *, distance: float = 0.3, read: float = 0.0, reference: bool = False) -> RolloutBatch:
    """A step of which about half of the tokens were drawn, by a policy that differs by `distance`; the engine read the
    share `read` of them again."""
    generator = torch.Generator().manual_seed(1)
    num_tokens = sum(LENGTHS)
    drawn = torch.rand(num_tokens, generator=generator) < 0.5
    batch = RolloutBatch(
        tokens_N=torch.randint(0, VOCAB, (num_tokens,), generator=generator),
        targets_N=torch.randint(0, VOCAB, (num_tokens,), generator=generator),
        weights_N=drawn.float(),
        positions_N=torch.cat([torch.arange(n) for n in LENGTHS]),
        starts_S=torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32),
        images=None,
        kinds_N=torch.zeros(num_tokens, dtype=torch.int8),
        advantages_N=torch.randn(len(LENGTHS), generator=generator).repeat_interleave(torch.tensor(LENGTHS)),
        logprobs_N=torch.zeros(num_tokens),
        versions_N=torch.where(drawn, torch.arange(num_tokens) // 7 + 1, 99),  # the newest is in the last answer
        current_N=torch.full((num_tokens,), math.nan),
    )
    now = model.logprobs(batch).detach()

    def near() -> Tensor:
        return (now + distance * torch.randn(num_tokens, generator=generator)).clamp(max=0).float()

    is_read = torch.rand(num_tokens, generator=generator) < read
    changes = {"logprobs_N": near(), "current_N": torch.where(is_read, near(), math.nan)}
    return replace(batch, **changes, **({"reference_N": near()} if reference else {}))


def gradients(model: Head, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", 8)


def values(metrics: object) -> dict[str, float]:
    assert isinstance(metrics, dict)
    return {name: one.value for name, one in metrics.items() if one.count}


def test_the_gradient_with_penalties_is_that_of_the_written_objective() -> None:
    model = Head()
    batch = rollouts(model, reference=True)
    config = PolicyLossConfig(correction=CorrectionConfig(name="tis", mask=1.0), drift_penalty=0.3, reference_kl=0.2)
    loss, metrics = policy_loss(config)(model, batch)

    now, drawn = model.logprobs(batch), batch.weights_N != 0
    rho = (now - batch.logprobs_N).exp()
    kl = (now - batch.reference_N).detach()
    surrogate = -(rho.detach().clamp(max=2) * (batch.advantages_N - 0.2 * kl) * now)
    penalty = 0.3 * (now - batch.logprobs_N).square() / 2
    literal = (surrogate + penalty)[drawn].sum() / drawn.sum()
    for ours, wanted in zip(gradients(model, loss), gradients(model, literal), strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-6, atol=1e-9)

    rho = rho.detach()[drawn]
    found = values(metrics)
    assert found["ratio"] == pytest.approx(float(rho.mean()))
    assert found["k3"] == pytest.approx(float((rho - 1 - rho.log()).mean()))
    assert found["clipped"] == pytest.approx(float((rho > 2).float().mean()))
    assert found["entropy"] == pytest.approx(float(-now.detach()[drawn].mean()))
    share = effective_share(found["ratio"], found["ratio_squared"])
    assert share == pytest.approx(float(rho.sum() ** 2 / len(rho) / rho.square().sum()))
    assert found["reference_k3"] == pytest.approx(float(((-kl).exp() - 1 + kl)[drawn].mean()))
    age = (7 - batch.versions_N).clamp(max=3)
    for number in range(4):
        own = (now - batch.logprobs_N).detach().abs()[drawn & (age == number)]
        assert found[f"drift_age_{number}"] == pytest.approx(float(own.mean()))


@pytest.mark.parametrize("name", ["tis", "clip", "gspo", "mis"])
@pytest.mark.parametrize("read", [0.0, 0.5, 1.0])
def test_gradients_and_metrics_of_the_parts_add_up_to_those_of_the_step(name: CorrectionName, read: float) -> None:
    model = Head()
    batch = rollouts(model, read=read, reference=True)
    loss_fn = policy_loss(PolicyLossConfig(correction=CorrectionConfig(name=name), reference_kl=0.1))
    loss, metrics = loss_fn(model, batch)
    parts = [loss_fn(model, part) for part in split_batch(batch, 3)]
    for whole, *own in zip(gradients(model, loss), *(gradients(model, one) for one, _ in parts), strict=True):
        assert torch.allclose(whole, torch.stack(own).sum(0), atol=1e-12)
    summed: dict[str, Mean] = {}
    for _, of_part in parts:
        summed = {key: summed[key] + one if key in summed else one for key, one in of_part.items()}
    assert values(summed) == pytest.approx(values(metrics))


def test_a_part_without_drawn_tokens_has_no_gradient_and_the_same_metrics() -> None:
    model = Head()
    batch = rollouts(model)
    rows = torch.nonzero(batch.weights_N == 0)[:, 0]
    empty = slice_batch(batch, rows, [0, len(rows)])
    for name in ("tis", "mis"):
        loss_fn = policy_loss(PolicyLossConfig(correction=CorrectionConfig(name=name)))
        loss, metrics = loss_fn(model, empty)
        assert all(not gradient.any() for gradient in gradients(model, loss))
        assert metrics.keys() == loss_fn(model, batch)[1].keys()
        assert all(one.count == 0 for one in metrics.values())


def test_what_the_engine_read_is_the_ratio_and_the_trainers_own_is_what_is_differentiated() -> None:
    model = Head()
    batch = rollouts(model, read=1.0)
    exact = replace(batch, logprobs_N=batch.current_N.clone())  # on policy, as the engine sees it
    for name in ("tis", "clip", "gspo", "mis", "icepop"):
        config = PolicyLossConfig(correction=CorrectionConfig(name=name))
        loss, metrics = policy_loss(config)(model, exact)
        drawn = batch.weights_N != 0
        literal = -(batch.advantages_N * model.logprobs(batch))[drawn].sum() / drawn.sum()
        for ours, wanted in zip(gradients(model, loss), gradients(model, literal), strict=True):
            assert torch.allclose(ours, wanted, rtol=1e-6, atol=1e-9)
        found = values(metrics)
        assert found["ratio"] == 1.0 and found["k3"] == 0.0
        assert found["engine_gap"] == pytest.approx(
            float((model.logprobs(batch) - batch.current_N).detach()[drawn].abs().mean())
        )


def test_a_correction_by_answers_reads_the_unembedding_once_more_only_where_the_engine_did_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = []
    chunks = losses.logit_chunks
    monkeypatch.setattr(losses, "logit_chunks", lambda *args: passes.append(args) or chunks(*args))
    model, counts = Head(), {}
    for name in ("tis", "mis"):
        for read in (0.0, 1.0):
            passes.clear()
            policy_loss(PolicyLossConfig(correction=CorrectionConfig(name=name)))(model, rollouts(model, read=read))
            counts[name, read] = len(passes)
    assert counts == {("tis", 0.0): 1, ("tis", 1.0): 1, ("mis", 0.0): 2, ("mis", 1.0): 1}


def test_the_kl_in_the_advantage_has_the_gradient_of_the_divergence_and_the_usual_estimator_that_of_the_other() -> None:
    """Exactly, over all tokens of one place, each weighing what the policy gives it."""
    generator = torch.Generator().manual_seed(5)
    logits, reference = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    log, ref = torch.log_softmax(logits, -1), torch.log_softmax(reference, -1)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    pi = log.detach().exp()
    ours = gradient((pi * (log - ref).detach() * log).sum())
    estimator = gradient((pi * ((ref - log).exp() - 1 - (ref - log))).sum())
    assert torch.allclose(ours, gradient((log.exp() * (log - ref)).sum()), atol=1e-12)
    assert torch.allclose(estimator, gradient((ref.exp() * (ref - log)).sum()), atol=1e-12)
    assert not torch.allclose(ours, estimator, atol=1e-2)


@pytest.mark.parametrize("axis", ["context", "tensor"])
def test_answers_that_ranks_cut_are_refused_where_they_are_needed_whole(axis: str) -> None:
    parallel = SimpleNamespace(mesh=SimpleNamespace(sizes={"context": 1, "tensor": 1, axis: 2}))
    policy_loss(PolicyLossConfig(), parallel)  # type: ignore[arg-type]
    with pytest.raises(HerdError, match=f"correction=gspo needs whole answers, which {axis} ranks cut"):
        policy_loss(PolicyLossConfig(correction=CorrectionConfig(name="gspo")), parallel)  # type: ignore[arg-type]
