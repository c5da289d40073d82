"""The preference losses beside TRL's, of whose trainer one method is called on log-probabilities of ours."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from herd.config import DpoConfig
from herd.data.loading.pack import Sample
from herd.data.loading.pair_batches import PairBatches, TokenPair
from herd.model.transformer import Transformer
from herd.train.preference import preference_loss

DPOTrainer = pytest.importorskip("trl").DPOTrainer

VOCAB = 30


class Head(Transformer):
    """The hidden states are the tokens' embeddings, in fp64."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Embedding(VOCAB, 8, dtype=torch.float64)
        self.unembedding = torch.nn.Linear(8, VOCAB, bias=False, dtype=torch.float64)
        for parameter in self.parameters():
            parameter.data.normal_(0, 0.5, generator=generator)

    def forward(self, tokens_N: Tensor, **_: object) -> Tensor:
        hidden_ND: Tensor = self.embedding(tokens_N)
        return hidden_ND


def random_pairs(count: int) -> list[TokenPair]:
    """Prompts and answers of uneven length."""
    rng = np.random.default_rng(0)

    def sample(prompt: np.ndarray) -> Sample:
        answer = rng.integers(0, VOCAB, rng.integers(1, 9))
        learnt = np.arange(len(prompt) + len(answer)) >= len(prompt)
        return Sample(ids=np.concatenate([prompt, answer]).astype(np.int32), learnt=learnt, kind="chat")

    prompts = [rng.integers(0, VOCAB, rng.integers(1, 6)) for _ in range(count)]
    return [TokenPair(chosen=sample(one), rejected=sample(one), heldout=False) for one in prompts]


def trl_loss(model: Head, pairs: list[TokenPair], reference: Any, own: dict[str, Any]) -> Tensor:
    samples = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    longest = max(len(one.ids) for one in samples)

    def padded(rows: list[np.ndarray]) -> Tensor:
        return torch.stack([torch.from_numpy(np.pad(row, (0, longest - len(row)))) for row in rows])

    ids, mask = padded([one.ids.astype(np.int64) for one in samples]), padded([one.learnt for one in samples]).long()

    def forward(input_ids: Tensor, labels: Tensor, **_: object) -> SimpleNamespace:
        log = torch.log_softmax(model(input_ids[:, :-1]) @ model.unembedding.weight.T, -1)
        log = log.gather(2, input_ids[:, 1:, None])[..., 0] * (labels[:, 1:] != -100)
        nothing = torch.zeros_like(log)
        return SimpleNamespace(log_probs=log, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())

    forward.training = True  # type: ignore[attr-defined]
    sums = [torch.tensor([side.sum(dtype=np.float64) for side in sides]) for sides in zip(*reference, strict=True)]
    trainer = SimpleNamespace(
        model=forward, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, use_weighting=False,
        f_divergence_type="reverse_kl", beta=0.3, label_smoothing=0.2, loss_types=["sigmoid"], loss_weights=[1.0],
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
    )  # fmt: skip
    vars(trainer).update(own)
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask,
        "ref_chosen_logps": sums[0], "ref_rejected_logps": sums[1],
    }  # fmt: skip
    loss: Tensor = DPOTrainer._compute_loss(trainer, forward, inputs, return_outputs=False)
    return loss


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ({"loss": "sigmoid", "nll": 0.0}, {}),
        ({"loss": "ipo", "nll": 0.0}, {"loss_types": ["ipo"]}),
        ({"loss": "robust", "nll": 0.0}, {"loss_types": ["robust"]}),
        ({"loss": "sigmoid", "nll": 0.1}, {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]}),
    ],
)
def test_loss_and_gradient_are_those_of_trl(own: dict[str, Any], theirs: dict[str, Any]) -> None:
    model, pairs = Head(), random_pairs(13)
    rng = np.random.default_rng(1)
    reference = [
        (*(-rng.random(int(sample.learnt.sum())).astype(np.float32) * 4 for sample in pair.both),) for pair in pairs
    ]
    config = DpoConfig(beta=0.3, label_smoothing=0.2, batch_pairs=13, **own)
    batches = PairBatches(pairs, reference, config)
    assert batches.num_steps == 1
    order = batches.steps[0].tolist()
    loss, metrics = preference_loss(config)(model, batches.batch(0))
    trl = trl_loss(model, [pairs[i] for i in order], [reference[i] for i in order], theirs)
    assert torch.allclose(loss, trl, rtol=1e-6)
    parameters = list(model.parameters())
    for ours, other in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(trl, parameters), strict=True):
        assert torch.allclose(ours, other, rtol=1e-6, atol=1e-9)
    assert metrics["accuracy"].count == 13
