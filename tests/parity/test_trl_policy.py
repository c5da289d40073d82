"""The policy gradient beside TRL's GRPO loss, of which one method is called on log-probabilities of ours."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from herd.config.rl_loss import CorrectionConfig, CorrectionName
from herd.rl.corrections import correct

GRPOTrainer = pytest.importorskip("trl").GRPOTrainer

ANSWERS, TOKENS = 7, 9


def trl_gradient(now: Tensor, advantages: Tensor, mask: Tensor, own: dict[str, Any], inputs: dict[str, Any]) -> Tensor:
    """By the log-probabilities, of TRL's loss summed over tokens and divided by their number."""
    now = now.clone().requires_grad_()
    count = mask.sum()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, torch.zeros_like(now), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=0.0,
        importance_sampling_level="token", loss_type="dapo", epsilon_low=0.2, epsilon_high=0.28,
        use_vllm=False, vllm_importance_sampling_correction=True, _entropy_bonus_enabled=False,
        args=SimpleNamespace(delta=None, steps_per_generation=1), current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x),
        _metrics={"train": defaultdict(list)}, model=SimpleNamespace(training=True),
    )  # fmt: skip
    vars(trainer).update(own)
    given = {
        "prompt_ids": torch.zeros(ANSWERS, 1), "prompt_mask": torch.ones(ANSWERS, 1), "completion_ids": mask,
        "completion_mask": mask, "advantages": advantages, "num_items_in_batch": count,
    }  # fmt: skip
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, given | inputs)
    return torch.autograd.grad(loss, now)[0]


@pytest.mark.parametrize("name", ["none", "tis", "mis", "clip", "cispo", "gspo", "icepop"])
def test_gradients_are_those_of_trl(name: CorrectionName) -> None:
    generator = torch.Generator().manual_seed(0)
    for round_ in range(20):
        now = -torch.rand(ANSWERS, TOKENS, generator=generator, dtype=torch.float64) * 4
        drawn = (now + [0.02, 0.5][round_ % 2] * torch.randn(now.shape, generator=generator)).clamp(max=0)
        advantages = torch.randn(ANSWERS, generator=generator, dtype=torch.float64)
        lengths = torch.randint(1, TOKENS + 1, (ANSWERS,), generator=generator)
        if name == "gspo":
            lengths.fill_(TOKENS)  # TRL's are a mean over answers, ours over tokens
        mask = (torch.arange(TOKENS) < lengths[:, None]).double()
        log_ratio = (now - drawn) * mask
        config = CorrectionConfig(name=name, mask=1.0)
        own: dict[str, Any] = {}
        inputs: dict[str, Any] = {}
        if name in ("tis", "icepop"):
            rho = log_ratio.exp()
            own = {"use_vllm": True}
            inside = (rho >= 0.5) & (rho <= 5)
            inputs = {"importance_sampling_ratio": rho.clamp(max=2.0) if name == "tis" else rho * inside}
        elif name == "mis":
            rho = log_ratio.sum(-1, keepdim=True).exp()
            own, inputs = {"use_vllm": True}, {"importance_sampling_ratio": rho.masked_fill(rho > 2.0, 0)}
        elif name == "clip":
            inputs = {"old_per_token_logps": drawn}
        elif name == "cispo":
            own, inputs = {"loss_type": "cispo", "epsilon_high": 5.0}, {"old_per_token_logps": drawn}
        elif name == "gspo":
            own = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4,
                   "epsilon_high": 4e-4}  # fmt: skip
            inputs = {"old_per_token_logps": drawn}
        theirs = trl_gradient(now, advantages, mask, own, inputs)

        rows = mask.bool()
        sequences = torch.arange(ANSWERS)[:, None].expand_as(now)[rows]
        token_advantages = advantages[:, None].expand_as(now)[rows]
        factors = correct(config, now[rows], drawn[rows], token_advantages, sequences).factors_R
        ours = torch.zeros_like(now)
        ours[rows] = -factors * token_advantages / mask.sum()
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-12), round_
