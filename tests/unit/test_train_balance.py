"""Balance: the biases even out the load, touch nothing but the choice, and are counted over the whole step."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from parallel_world import folded
from parallel_world import small_model as whole_model
from torch import Tensor

from herd.bench.ranks import on_ranks
from herd.config import MoEConfig, OptimizerConfig, ParallelConfig, SpecialIds, preset
from herd.model.init import initialise
from herd.model.moe import MoE
from herd.model.transformer import Transformer
from herd.train.balance import Balancer, max_violation, total_balance_loss, update_bias
from herd.train.fold import constant_direction
from herd.train.optimizer import Optimizer
from herd.train.passes import read_master

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)


def small_model() -> Transformer:
    model = Transformer(preset("tiny", vocab_size=64, special=SPECIAL))
    initialise(model, torch.Generator().manual_seed(0))
    return model.train()


class Documents:
    """One document a step."""

    num_steps, unit = 10, "tokens"

    def batch(self, step: int) -> Tensor:
        return torch.randint(10, 64, (400,), generator=torch.Generator().manual_seed(step))


def read(model: Transformer, tokens_N: Tensor) -> None:
    count = len(tokens_N)
    model(tokens_N, positions_N=torch.arange(count), starts_S=torch.tensor([0, count], dtype=torch.int32))


def stepper(model: Transformer) -> Optimizer:
    return Optimizer(model, OptimizerConfig(), Documents.num_steps)


@pytest.mark.parametrize("experts", [16, 128])
def test_the_biases_even_out_a_skewed_router(experts: int) -> None:
    """Experts whose logits differ by up to three and drift: a fresh draw of 4,096 tokens a step."""
    generator = torch.Generator().manual_seed(0)
    skew_E, drift_E = 3 * torch.rand(experts, generator=generator), torch.randn(experts, generator=generator)
    bias_LE, total_E = torch.zeros(1, experts), torch.zeros(experts)
    drift_LE = torch.zeros_like(bias_LE)
    for step in range(400):
        logits_NE = torch.randn(4096, experts, generator=generator) + skew_E + 0.001 * step * drift_E
        count_E = torch.bincount((logits_NE + bias_LE[0]).argmax(-1), minlength=experts)
        bias_LE, drift_LE = update_bias(bias_LE, drift_LE, count_E[None], 0.05)
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

        balancer = Balancer(model, 0.05, Documents(), read, reduce=reduce)
        read(model, documents[0])
        if other is None:
            read(model, documents[1])
        metrics = balancer.after_step(0, stepper(model), updated=True)
        assert [sum(counts) for counts in metrics["expert_load"]] == [64] * 4  # type: ignore[attr-defined]
        found.append(balancer.bias_LE)
    assert torch.equal(*found) and found[0].abs().max() > 0


def test_biases_come_back_from_a_checkpoint_to_the_bit_and_are_read_by_the_model() -> None:
    model = small_model()
    balancer = Balancer(model, 0.05, Documents(), read)
    for _ in range(3):
        read(model, torch.arange(10, 60))
        balancer.after_step(0, stepper(model), updated=True)
    again = small_model()
    other = Balancer(again, 0.05, Documents(), read)
    other.load_state_dict({name: tensor.clone() for name, tensor in balancer.state_dict().items()})
    assert torch.equal(balancer.bias_LE, other.bias_LE)
    for ours, theirs in zip(model.layers, again.layers, strict=True):
        assert torch.equal(ours.ffn.bias_E, theirs.ffn.bias_E)


def test_without_a_rate_no_bias_is_set_and_the_load_is_recorded_all_the_same() -> None:
    model = small_model()
    balancer = Balancer(model, 0.0, Documents(), read)
    assert balancer.after_step(0, stepper(model), updated=True) == {}
    read(model, torch.arange(10, 60))
    metrics = balancer.after_step(0, stepper(model), updated=True)
    assert set(metrics) == {"expert_load", "max_vio"}
    assert all(layer.ffn.bias_E is None for layer in model.layers)


def test_a_model_without_mixtures_has_nothing_to_balance() -> None:
    """As Llama Guard 4 is."""
    config = preset("tiny", vocab_size=64, special=SPECIAL)
    model = Transformer(replace(config, moe=replace(config.moe, every=5))).train()
    initialise(model, torch.Generator().manual_seed(0))
    balancer = Balancer(model, 1e-3, Documents(), read)
    read(model, torch.arange(10, 60))
    assert float(total_balance_loss(model)) == 0
    assert balancer.after_step(9, stepper(model), updated=True) == {}


def test_the_load_of_an_outlier_moves_no_bias_and_is_forgotten() -> None:
    model = small_model()
    balancer = Balancer(model, 0.05, Documents(), read)
    read(model, torch.arange(10, 60))
    balancer.after_step(0, stepper(model), updated=False)
    assert not balancer.bias_LE.any()
    assert balancer.after_step(1, stepper(model), updated=True) == {}


def test_the_constant_direction_is_exact_where_a_channel_is_constant_and_is_the_least_squares_one_elsewhere() -> None:
    x_ND = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    x_ND[:, 5] = 2.0
    u_D = constant_direction(x_ND.mean(0), x_ND.T @ x_ND / 500)
    assert torch.allclose(x_ND @ u_D, torch.ones(500), atol=0.01)  # short of it by the ridge
    x_ND[:, 5] += 0.5 * x_ND[:, 0].square()
    u_D = constant_direction(x_ND.mean(0), x_ND.T @ x_ND / 500)
    wanted = torch.linalg.lstsq(x_ND, torch.ones(500, 1)).solution[:, 0]
    assert torch.allclose(u_D, wanted, atol=0.01)


def with_a_constant(_: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
    x_ND = inputs[0]
    return (torch.cat([torch.ones_like(x_ND[:, :1]), x_ND[:, 1:]], dim=1),)


def choices(model: Transformer, tokens_N: Tensor) -> Tensor:
    """Counts of the first mixture, whose inputs no earlier gate has touched."""
    moe = model.layers[0].ffn
    with torch.no_grad():
        read(model, tokens_N)
    count_E, moe.count_E = moe.count_E, None
    return count_E


def test_after_the_last_step_the_model_chooses_without_biases_as_it_did_with_them() -> None:
    """The router's input has a channel that is constant, so that the fold is exact but for the ridge."""
    model = small_model()
    for layer in model.layers:
        layer.ffn.register_forward_pre_hook(with_a_constant)
    optimizer, balancer = stepper(model), Balancer(model, 0.05, Documents(), read)
    biases = torch.randn(balancer.bias_LE.shape, generator=torch.Generator().manual_seed(3))
    balancer.load_state_dict({"bias_LE": biases, "drift_LE": torch.zeros_like(biases)})
    before = choices(model, Documents().batch(9))
    read(model, Documents().batch(9))
    metrics = balancer.after_step(9, optimizer, updated=False)
    assert min(metrics["fold"]["fit"]) > 0.98  # type: ignore[index]
    assert not balancer.bias_LE.any()
    after = choices(model, Documents().batch(9))
    assert (before - after).abs().sum() <= 16
    unbiased = small_model()
    unbiased.layers[0].ffn.register_forward_pre_hook(with_a_constant)
    assert (before - choices(unbiased, Documents().batch(9))).abs().sum() > 50
    for name, parameter in optimizer.parameters.items():
        one = optimizer.trained[name]
        master = read_master(one.weight, one.low_bits)
        assert torch.equal(parameter, master.to(parameter.dtype)), name


def test_ranks_fold_the_same_biases_into_the_same_routers() -> None:
    meshes = [ParallelConfig(**{axis: 2}) for axis in ("replicate", "shard", "expert", "context", "tensor")]
    wanted = folded(ParallelConfig())
    for name, parameter in whole_model().named_parameters():
        assert "router" not in name or (wanted[name] - parameter).abs().max() > 1e-3
    for ranks in on_ranks(*[(2, folded, (mesh,)) for mesh in meshes]):
        for rank in ranks:
            for name, value in wanted.items():
                assert torch.allclose(rank[name], value, atol=1e-5), name
