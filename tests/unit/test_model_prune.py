"""A smaller model keeps the parts that do most, and each part as it was."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel_world import SHAPE, RandomBatches, small_model

from herd.config import MoEConfig, PruneConfig
from herd.core.lineage import read_lineage
from herd.engine.load import load
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.formats.weights import Weights, assemble
from herd.model.moe import MoE
from herd.model.prune import choose_experts, choose_layers, dense, measure, pruned
from herd.model.transformer import Transformer
from herd.stages.prune import prune

DEEP = replace(SHAPE, num_layers=8, nope_every=4)


def hidden(model: Transformer) -> torch.Tensor:
    batch = RandomBatches().batch(0)
    with torch.no_grad():
        return model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S)


def all_experts(model: Transformer) -> dict[int, list[int]]:
    return {i: list(range(model.config.moe.num_experts)) for i in range(len(model.layers)) if model.config.is_moe(i)}


@given(
    st.lists(st.floats(0, 1), min_size=8, max_size=8),
    st.integers(1, 8),
    st.sampled_from([1, 2]),
    st.sampled_from([2, 4]),
)
def test_layers_are_the_worthiest_of_the_right_kinds_in_their_order(
    worth: list[float], num_layers: int, every: int, nope_every: int
) -> None:
    config = replace(DEEP, moe=MoEConfig(num_experts=4, ffn_dim=32, every=every), nope_every=nope_every)

    def fits(layers: tuple[int, ...]) -> bool:
        return all(
            (config.is_global(a), config.is_moe(a)) == (config.is_global(b), config.is_moe(b))
            for a, b in enumerate(layers)
        )

    chosen = choose_layers(config, worth, num_layers)
    assert len(chosen) == num_layers and chosen == sorted(set(chosen)) and fits(tuple(chosen))
    best = max(sum(worth[i] for i in layers) for layers in combinations(range(8), num_layers) if fits(layers))
    assert sum(worth[i] for i in chosen) == pytest.approx(best)


def test_a_layer_that_changes_nothing_goes_and_the_function_stays() -> None:
    model = small_model(DEEP).eval()
    with torch.no_grad():
        for index in (0, 1, 2, 3):  # a whole period, so that the others keep their kinds
            layer = model.layers[index]
            layer.attention.out.weight.zero_()
            down = layer.ffn.shared.down if isinstance(layer.ffn, MoE) else layer.ffn.down
            down.weight.zero_()
            if isinstance(layer.ffn, MoE):
                layer.ffn.down_EFD.zero_()
    worth = measure(model, [RandomBatches().batch(0)])
    assert max(worth.layers[:4]) < 1e-6 < min(worth.layers[4:])
    layers = choose_layers(model.config, worth.layers, 4)
    assert layers == [4, 5, 6, 7]
    smaller = assemble(pruned(Weights.of(model), layers, {i: e for i, e in all_experts(model).items() if i in layers}))
    assert torch.equal(hidden(smaller), hidden(model))


def test_experts_that_got_no_token_go_and_the_function_stays() -> None:
    model = small_model().eval()
    with torch.no_grad():
        for layer in model.layers:
            if isinstance(layer.ffn, MoE):  # two experts never win
                layer.ffn.router.weight[:2] = 0
                layer.ffn.router.weight[2] = -layer.ffn.router.weight[3]
    worth = measure(model, [RandomBatches().batch(0)])
    counts = [one for one in worth.experts if one is not None]
    assert counts and all(int(count[:2].sum()) == 0 and int(count.sum()) == 128 for count in counts)
    experts = {i: choose_experts(one, 2) for i, one in enumerate(worth.experts) if one is not None}
    assert set(map(tuple, experts.values())) == {(2, 3)}
    smaller = assemble(pruned(Weights.of(model), list(range(len(model.layers))), experts))
    assert smaller.config.moe.num_experts == 2
    assert torch.allclose(hidden(smaller), hidden(model), atol=1e-5)


def test_the_command_writes_a_model_that_opens(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    config = load(tiny_folder).config
    asked = PruneConfig(num_layers=config.num_layers - 1, num_experts=2, num_tokens=2000, context=64)
    out = prune(asked, tiny_folder, tiny_data, tmp_path / "out")
    smaller = load(out).config
    assert (smaller.num_layers, smaller.moe.num_experts) == (config.num_layers - 1, 2)
    assert len(read_lineage(out)["layers"]) == smaller.num_layers


@pytest.mark.parametrize(
    ("config", "reported"),
    [
        (PruneConfig(), "nothing would be pruned: give --num-layers, --num-experts or both"),
        (PruneConfig(num_layers=99, num_tokens=2000), "num_layers=99 must be 1 to the "),
        (PruneConfig(num_experts=99, num_tokens=2000), "num_experts=99 must be 1 to the "),
    ],
)
def test_more_than_there_is_cannot_be_kept(
    config: PruneConfig, reported: str, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(HerdError, match=reported):
        prune(config, tiny_folder, tiny_data, tmp_path / "out")


@pytest.mark.parametrize("every", [1, 2])
def test_a_dense_model_is_the_one_whose_routed_experts_are_silent(every: int) -> None:
    """To the bit; also where layers that were dense are wider than shared experts, which zeros then fill up."""
    config = replace(DEEP, moe=MoEConfig(num_experts=4, ffn_dim=32, every=every), dense_ffn_dim=48)
    model = small_model(config).eval()
    with torch.no_grad():
        for layer in model.layers:
            if isinstance(layer.ffn, MoE):
                layer.ffn.down_EFD.zero_()
    left = assemble(dense(Weights.of(model)))
    assert not any(left.config.is_moe(layer) for layer in range(8))
    assert left.config.dense_ffn_dim == (32 if every == 1 else 48)
    assert torch.equal(hidden(left), hidden(model))


def test_a_dense_model_is_written_and_opened_again(tmp_path: Path) -> None:
    weights = dense(Weights.of(small_model(DEEP).eval()))
    huggingface.write(weights, tmp_path, dtype=torch.float32)
    huggingface.save_processor(weights.config, tmp_path)
    again = assemble(huggingface.open_folder(tmp_path))
    assert torch.equal(hidden(again), hidden(assemble(weights)))
