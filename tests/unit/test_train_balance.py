"""Balance: the biases even out the load, touch nothing but the choice, and are counted over the whole step."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from herd.config import MoEConfig, SpecialIds, preset
from herd.model.init import initialise
from herd.model.moe import MoE
from herd.model.transformer import Transformer
from herd.train.balance import Balancer, max_violation, moved

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)


def small_model() -> Transformer:
    model = Transformer(preset("tiny", vocab_size=64, special=SPECIAL))
    initialise(model, torch.Generator().manual_seed(0))
    return model.train()


def read(model: Transformer, tokens_N: Tensor) -> None:
    count = len(tokens_N)
    model(tokens_N, positions_N=torch.arange(count), starts_S=torch.tensor([0, count], dtype=torch.int32))


@pytest.mark.parametrize("experts", [16, 128])
def test_the_biases_even_out_a_skewed_router(experts: int) -> None:
    """Experts whose logits differ by up to three and drift: a fresh draw of 4,096 tokens a step."""
    generator = torch.Generator().manual_seed(0)
    skew_E, drift_E = 3 * torch.rand(experts, generator=generator), torch.randn(experts, generator=generator)
    bias_LE, total_E = torch.zeros(1, experts), torch.zeros(experts)
    for step in range(400):
        logits_NE = torch.randn(4096, experts, generator=generator) + skew_E + 0.001 * step * drift_E
        count_E = torch.bincount((logits_NE + bias_LE[0]).argmax(-1), minlength=experts)
        bias_LE = moved(bias_LE, count_E[None], 0.05)
        total_E += count_E if step >= 100 else 0
    unbiased_E = torch.bincount(logits_NE.argmax(-1), minlength=experts)
    assert max_violation(unbiased_E / unbiased_E.sum()) > 1
    assert max_violation(total_E / total_E.sum()) < 0.1 and total_E.min() > 0
    assert bias_LE.mean().abs() < 1e-5


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_bias_chooses_experts_and_leaves_the_gate_as_it_was(top_k: int) -> None:
    torch.manual_seed(0)
    moe = MoE(16, MoEConfig(num_experts=5, ffn_dim=8, top_k=top_k))
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    moe.bias_E = torch.tensor([-3.0, 0, 3, 0, 1])
    x_ND = torch.randn(40, 16)
    out_ND = moe(x_ND)
    logits_NE = x_ND @ moe.router.weight.T
    for token in range(40):
        wanted = moe.shared(x_ND[token : token + 1])[0]
        for expert in (logits_NE[token] + moe.bias_E).topk(top_k).indices:
            scaled = x_ND[token] * torch.sigmoid(logits_NE[token, expert])
            gate, up = (scaled @ moe.gate_up_EDF[expert]).chunk(2)
            wanted = wanted + (F.silu(gate) * up) @ moe.down_EFD[expert]
        assert torch.allclose(out_ND[token], wanted, atol=1e-5)


def test_what_is_counted_is_the_whole_step_on_all_ranks() -> None:
    """Two documents in one forward, in two, and on two ranks move the biases to the same bits."""
    documents = torch.randint(10, 64, (2, 32), generator=torch.Generator().manual_seed(1))
    found = []
    for other in (None, documents[1]):
        model, elsewhere = small_model(), small_model()

        def reduce(count_LE: Tensor, other: Tensor | None = other, elsewhere: Transformer = elsewhere) -> None:
            if other is not None:
                read(elsewhere, other)
                count_LE += torch.stack([layer.ffn.count_E for layer in elsewhere.layers])  # type: ignore[misc]

        balancer = Balancer(model, 0.05, reduce=reduce)
        read(model, documents[0])
        if other is None:
            read(model, documents[1])
        metrics = balancer.after_step(0, updated=True)
        assert [sum(counts) for counts in metrics["expert_load"]] == [64] * 4  # type: ignore[attr-defined]
        found.append(balancer.bias_LE)
    assert torch.equal(*found) and found[0].abs().max() > 0


def test_biases_come_back_from_a_checkpoint_to_the_bit_and_are_read_by_the_model() -> None:
    model = small_model()
    balancer = Balancer(model, 0.05)
    for _ in range(3):
        read(model, torch.arange(10, 60))
        balancer.after_step(0, updated=True)
    again = small_model()
    other = Balancer(again, 0.05)
    other.load_state_dict({name: tensor.clone() for name, tensor in balancer.state_dict().items()})
    assert torch.equal(balancer.bias_LE, other.bias_LE)
    for ours, theirs in zip(model.layers, again.layers, strict=True):
        assert torch.equal(ours.ffn.bias_E, theirs.ffn.bias_E)


def test_without_a_rate_no_bias_is_set_and_the_load_is_told_all_the_same() -> None:
    model = small_model()
    balancer = Balancer(model, 0.0)
    assert balancer.after_step(0, updated=True) == {}
    read(model, torch.arange(10, 60))
    metrics = balancer.after_step(0, updated=True)
    assert set(metrics) == {"expert_load", "max_vio"}
    assert all(layer.ffn.bias_E is None for layer in model.layers)


def test_the_load_of_an_outlier_moves_no_bias_and_is_forgotten() -> None:
    model = small_model()
    balancer = Balancer(model, 0.05)
    read(model, torch.arange(10, 60))
    balancer.after_step(0, updated=False)
    assert not balancer.bias_LE.any()
    assert balancer.after_step(1, updated=True) == {}
