"""The mixture against its definition, expert by expert."""

import pytest
import torch
import torch.nn.functional as F

from herd.config import MoEConfig
from herd.model.moe import MoE


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_token_gets_the_shared_expert_and_its_own_ones_on_its_scaled_input(top_k: int) -> None:
    torch.manual_seed(0)
    moe = MoE(16, MoEConfig(num_experts=5, ffn_dim=8, top_k=top_k))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x_ND = torch.randn(40, 16)
    out_ND = moe(x_ND)
    logits_NE = x_ND @ moe.router.weight.T
    for token in range(40):
        wanted = moe.shared(x_ND[token : token + 1])[0]
        for expert in logits_NE[token].topk(top_k).indices:
            scaled = x_ND[token] * torch.sigmoid(logits_NE[token, expert])
            gate, up = (scaled @ moe.gate_up_EDF[expert]).chunk(2)
            wanted = wanted + (F.silu(gate) * up) @ moe.down_EFD[expert]
        assert torch.allclose(out_ND[token], wanted, atol=1e-5)


def test_gradients_reach_every_part_and_experts_without_tokens_get_none() -> None:
    torch.manual_seed(0)
    moe = MoE(16, MoEConfig(num_experts=4, ffn_dim=8))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        moe.router.weight[3] = -100 * torch.ones(16)
    moe(torch.rand(30, 16)).square().sum().backward()
    touched = moe.gate_up_EDF.grad.abs().sum((1, 2)) > 0
    assert touched[:3].any() and not touched[3]
    assert moe.router.weight.grad.abs().sum() > 0


def test_bf16_grouped_products_agree_with_fp32() -> None:
    torch.manual_seed(0)
    moe = MoE(64, MoEConfig(num_experts=4, ffn_dim=32))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x_ND = torch.randn(50, 64).bfloat16()
    exact = moe(x_ND.float())
    rounded = moe.bfloat16()(x_ND).float()
    assert (exact - rounded).norm() < 0.02 * exact.norm()
