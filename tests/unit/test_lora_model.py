"""LoRA in the model: adapters on its matrices, their gradients and optimizer, and what is merged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parallel_world import SHAPE, RandomBatches, adapted, loss_of, small_model

from herd import native
from herd.cli import main, write_out
from herd.config import LoraConfig, MoEConfig, OptimizerConfig, SftConfig
from herd.errors import HerdError
from herd.model import fused
from herd.model.formats import huggingface, peft
from herd.model.formats.weights import Weights, assemble
from herd.model.lora import AdaptedLinear, AdaptedMoE, adapters, add_adapters, initial
from herd.model.transformer import Transformer
from herd.train.optimizer import Optimizer


def merged(model: Transformer, base: Transformer, lora: LoraConfig) -> Transformer:
    values = {name: parameter.detach() for name, parameter in adapters(model)}
    pairs = peft.from_parameters(model.config, values, lora.scale)
    return assemble(peft.merge(Weights.of(base), pairs)).train()


@pytest.mark.parametrize(
    "lora", [LoraConfig(rank=3), LoraConfig(rank=4, targets=("experts",), rslora=True), LoraConfig(rank=1, alpha=2.0)]
)
@pytest.mark.parametrize("moe", [SHAPE.moe, MoEConfig(num_experts=5, ffn_dim=24, top_k=2)])
def test_merged_equals_unmerged_and_only_adapters_have_gradients(lora: LoraConfig, moe: MoEConfig) -> None:
    base, batch = small_model(replace(SHAPE, moe=moe)), RandomBatches().batch(0)
    model = adapted(lora, replace(SHAPE, moe=moe))
    loss = loss_of(model, batch)
    assert abs(float(loss.detach()) - float(loss_of(base, batch).detach())) > 1e-3
    assert float(loss.detach()) == pytest.approx(float(loss_of(merged(model, base, lora), batch)), abs=1e-5)
    loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {n for n, _ in adapters(model)}


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradients_are_those_through_a_merged_matrix(recompute: bool) -> None:
    lora, batch = LoraConfig(rank=3), RandomBatches().batch(0)
    model, base = adapted(lora), small_model()
    model.recompute = recompute
    whole = merged(model, base, lora).requires_grad_(True)
    loss_of(model, batch).backward()
    loss_of(whole, batch).backward()
    values = dict(adapters(model))
    out, gate_up = whole.layers[1].attention.out.weight.grad, whole.layers[1].ffn.gate_up_EDF.grad
    a, b = (values[f"layers.1.attention.out.lora_{x}"] for x in "AB")
    assert torch.allclose(b.grad, lora.scale * out @ a.T, atol=1e-5)
    a, b = (values[f"layers.1.ffn.lora_gate_up_{x}"] for x in "AB")
    assert torch.allclose(a.grad, lora.scale * gate_up @ b.mT, atol=1e-5)


@pytest.mark.parametrize("kernels", [True, False])
def test_adapters_in_bf16_by_the_kernels_and_by_pytorch(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels and native.why_not() is not None:
        pytest.skip("needs the kernels")
    rows_RD = torch.randn(40, SHAPE.dim, generator=torch.Generator().manual_seed(0))
    count_E, lora, found = torch.tensor([13, 0, 20, 7]), LoraConfig(rank=3), {}
    for dtype in (torch.float32, torch.bfloat16):
        if not kernels:
            monkeypatch.setattr(native, "why_not", lambda *_: "off")
        layer = adapted(lora).to(dtype).layers[1]
        rows = rows_RD.clone().to(dtype).requires_grad_()
        out = layer.ffn.experts(rows, count_E) + layer.ffn.shared(rows)
        (out * torch.linspace(-1, 1, SHAPE.dim, dtype=dtype)).sum().backward()
        grads = {name: parameter.grad for name, parameter in adapters(layer) if not name.startswith("attention")}
        found[dtype] = {"out": out.detach(), "rows": rows.grad, **grads}
    for name, wanted in found[torch.float32].items():
        got = found[torch.bfloat16][name]
        assert got.dtype == torch.bfloat16
        assert (got.float() - wanted).norm() <= 0.02 * wanted.norm(), name


def test_the_native_forward_refuses_a_model_with_adapters(tiny_folder: Path) -> None:
    model = huggingface.load(tiny_folder)
    if (reason := fused.why_not(model)) is not None:
        pytest.skip(reason)
    add_adapters(model, LoraConfig(rank=2, targets=("shared",)))
    assert "AdaptedLinear, which the native forward does not know" in str(fused.why_not(model))
    model = huggingface.load(tiny_folder)
    add_adapters(model, LoraConfig(rank=2, targets=("experts",)))
    assert "AdaptedMoE, which the native forward does not know" in str(fused.why_not(model))


def test_targets_name_the_matrices_with_adapters() -> None:
    kinds = {}
    for target in ("attention", "dense", "shared", "experts"):
        model = small_model()
        add_adapters(model, LoraConfig(rank=2, targets=(target,)))  # type: ignore[arg-type]
        modules = {n: type(m) for n, m in model.named_modules() if isinstance(m, AdaptedLinear | AdaptedMoE)}
        kinds[target] = set(modules)
        assert {p for p, parameter in model.named_parameters() if parameter.requires_grad} == {
            n for n, _ in adapters(model)
        }
    assert kinds == {
        "attention": {f"layers.{i}.attention.{x}" for i in range(4) for x in ("qkv", "out")},
        "dense": {f"layers.{i}.ffn.{x}" for i in (0, 2) for x in ("gate_up", "down")},
        "shared": {f"layers.{i}.ffn.shared.{x}" for i in (1, 3) for x in ("gate_up", "down")},
        "experts": {f"layers.{i}.ffn" for i in (1, 3)},
    }


def test_new_adapters_change_nothing_and_are_a_function_of_the_seed() -> None:
    batch, model = RandomBatches().batch(0), small_model()
    before = float(loss_of(model, batch).detach())
    add_adapters(model, LoraConfig(rank=4))
    for name, parameter in adapters(model):
        parameter.data = initial(name, tuple(parameter.shape), 7)
        assert name.endswith("B") == (not parameter.any()), name
        assert parameter.abs().max() <= parameter.shape[1] ** -0.5
    assert float(loss_of(model, batch).detach()) == before
    name, shape = "layers.0.attention.qkv.lora_A", (12, 32)
    assert torch.equal(initial(name, shape, 7), initial(name, shape, 7))
    assert not torch.equal(initial(name, shape, 7), initial(name, shape, 8))


def test_adapters_alone_have_an_optimizer_state_and_it_is_adamws() -> None:
    model = adapted(LoraConfig(rank=4))
    optimizer = Optimizer(model, OptimizerConfig(), 10)
    assert {one.name for one in optimizer.groups["adapter"]} == {name for name, _ in adapters(model)}
    state = optimizer.state_dict()
    assert all(state[part].keys() == dict(adapters(model)).keys() for part in ("weight", "first", "second"))


@pytest.mark.parametrize(
    ("make", "reported"),
    [
        (lambda: LoraConfig(rank=0), "rank=0 must be at least 1"),
        (lambda: LoraConfig(rank=4, targets=("atention",)), "unknown LoRA target 'atention', did you mean 'attention'"),  # type: ignore[arg-type]
        (lambda: LoraConfig(rank=4, targets=()), "targets is empty"),
        (lambda: add_adapters(small_model(), LoraConfig(rank=40)), "rank=40 is larger than a side of layers.0.atten"),
        (
            lambda: add_adapters(
                small_model(replace(SHAPE, moe=MoEConfig(num_experts=2, ffn_dim=8, every=9))),
                LoraConfig(rank=4, targets=("experts",)),
            ),
            "the model has no such matrices",
        ),
        (lambda: SftConfig(lora=LoraConfig(rank=4), trainable=("layers.*",)), "would have no effect"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], reported: str) -> None:
    with pytest.raises(HerdError, match=reported):
        make()


def test_lora_is_short_for_its_rank(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert [write_out(word) for word in ("--lora", "--lora=8", "--sft.lora", "--lora.alpha", "--a.b.lora", "lora")] == [
        "--lora.rank", "--lora.rank=8", "--sft.lora.rank", "--lora.alpha", "--a.b.lora", "lora",
    ]  # fmt: skip
    assert main(["sft", "m", "--data", "d", "--out", "o", "--lora", "0"]) == 2
    assert "rank=0 must be at least 1" in capsys.readouterr().err
    from herd.commands.stages import STAGES
    from herd.stages.recipe import load_recipe

    for text in ("lora = 16", "[sft.lora]\nrank = 16"):
        (tmp_path / "r.toml").write_text(f'model = "{tmp_path}"\n[data]\n[sft]\n{text}\n')
        (tmp_path / "config.json").touch()
        assert load_recipe(str(tmp_path / "r.toml"), STAGES)["sft"].config.lora == LoraConfig(rank=16)
