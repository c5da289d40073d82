"""Any mesh makes the training of one rank: the parts without processes here, and real gloo ranks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_world import (
    SHAPE,
    RandomBatches,
    adapters_read,
    gradients,
    hidden_states,
    loaded,
    loaded_on,
    resharded,
    rows_of_experts,
    saved,
    small_model,
)
from torch import Tensor

from herd import native
from herd.bench.ranks import on_ranks
from herd.bench.scaling import BOUND, MESHES, scaling
from herd.config import LoraConfig, MoEConfig, ParallelConfig
from herd.core.batch import Batch, split_batch
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.formats.weights import skeleton
from herd.model.lora import add_adapters
from herd.model.parallel import ALONE, Parallel, start
from herd.model.parallel.context import plan_ring
from herd.model.parallel.layout import Layout, Split, layouts
from herd.model.parallel.mesh import Mesh
from herd.model.parallel.pieces import chunk_begins, context_cuts, share


class Seat(Mesh):
    """A place on a mesh without processes: for what needs no collective."""

    def __init__(self, sizes: dict[str, int], place: dict[str, int]) -> None:
        super().__init__(ParallelConfig())
        self.sizes |= sizes
        self.place |= place


def seats(**sizes: int) -> list[Seat]:
    places: list[dict[str, int]] = [{}]
    for axis, size in sizes.items():
        places = [{**place, axis: i} for place in places for i in range(size)]
    return [Seat(sizes, place) for place in places]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 5), st.integers(1, 3))
def test_the_ranks_shards_cover_every_parameter_once(
    shard: int, expert: int, tensor: int, experts: int, kv_heads: int
) -> None:
    config = replace(
        SHAPE,
        num_layers=2,
        num_heads=4 * kv_heads,
        num_kv_heads=2 * kv_heads,
        moe=MoEConfig(num_experts=experts, ffn_dim=4, every=2),
        vision=None,
    )
    model = skeleton(config)
    add_adapters(model, LoraConfig(rank=1))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    seen = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for seat in seats(shard=shard, expert=expert, tensor=tensor):
        for name, layout in layouts(config, shapes, seat).items():
            whole = torch.arange(seen[name].numel()).view(shapes[name])
            part = layout.take(whole)
            for box, here in layout.boxes():
                at, inside = (tuple(slice(*pair) for pair in pairs) for pairs in (box, here))
                assert torch.equal(whole[at], part[inside]), name
                seen[name][at] += 1 / layout.copies
    for name, count in seen.items():
        assert torch.allclose(count, torch.ones_like(count)), name


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.booleans(),
)
def test_the_ranks_parts_are_the_batch_in_its_order(
    lengths: list[int], replicate: int, context: int, tensor: int, pictures: bool
) -> None:
    lengths[0] += 40 * pictures
    batch = RandomBatches(lengths=tuple(lengths), pictures=pictures).batch(0)
    tokens = []
    for seat in seats(replicate=replicate, context=context, tensor=tensor):
        part = share(batch, seat, SHAPE.chunk_size)
        if seat.place["tensor"] == 0:
            tokens.append((part.tokens_N, part.positions_N))
        assert (part.images is None) == (batch.images is None)
    first = [share(batch, seat, SHAPE.chunk_size) for seat in seats(replicate=replicate)]
    assert torch.equal(torch.cat([part.tokens_N for part in first]), batch.tokens_N)
    assert torch.equal(torch.cat([part.weights_N for part in first]), batch.weights_N)
    everything = torch.cat([t * 1000 + p for t, p in tokens])
    assert torch.equal(everything.sort()[0], (batch.tokens_N * 1000 + batch.positions_N).sort()[0])
    total = sum(
        float(share(batch, seat, SHAPE.chunk_size).weights_N.sum())
        for seat in seats(replicate=replicate, context=context, tensor=tensor)
    )
    assert total == pytest.approx(batch.total_weight, rel=1e-5)
    assert all(part.total_weight == batch.total_weight for part in first)


@dataclass(frozen=True, kw_only=True)
class Draws(Batch):
    """A batch with fields of its own, of each token and of the step."""

    advantages_N: Tensor
    draws_NK: Tensor
    routes_N: Tensor | None = None
    rewards_G: Tensor
    num_groups: int


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 4), st.booleans())
def test_every_way_of_cutting_cuts_the_fields_per_token_of_a_subclass_and_no_other(
    lengths: list[int], count: int, pictures: bool
) -> None:
    lengths[0] += 40 * pictures
    plain = RandomBatches(lengths=tuple(lengths), pictures=pictures).batch(0)
    place_N = torch.arange(sum(lengths))
    fields_of = {name: getattr(plain, name) for name in Batch.__dataclass_fields__} | {"kinds_N": place_N}
    batch = Draws(
        **fields_of,
        advantages_N=place_N * 2.0,
        draws_NK=torch.stack([place_N, -place_N], -1),
        rewards_G=torch.ones(sum(lengths)),
        num_groups=3,
    )
    for parts in (
        split_batch(batch, count),
        [share(batch, seat, SHAPE.chunk_size) for seat in seats(replicate=count)],
        [share(batch, seat, SHAPE.chunk_size) for seat in seats(context=count)],
    ):
        assert torch.equal(torch.cat([part.kinds_N for part in parts]).sort()[0], place_N)
        for part in parts:
            assert isinstance(part, Draws)
            rows = part.kinds_N
            assert torch.equal(part.tokens_N, batch.tokens_N[rows])
            assert torch.equal(part.advantages_N, batch.advantages_N[rows])
            assert torch.equal(part.draws_NK, batch.draws_NK[rows])
            assert part.routes_N is None
            assert part.rewards_G is batch.rewards_G
            assert (part.num_groups, part.total_weight) == (3, batch.total_weight)
            if batch.images is not None:
                assert part.images is not None
                shown = torch.isin(batch.images.rows, rows)
                assert torch.equal(rows[part.images.rows].sort()[0], batch.images.rows[shown].sort()[0])


def test_chunks_stay_on_one_rank_where_the_cuts_can_spare_them() -> None:
    starts = [0, 64, 200, 256]
    cuts = context_cuts(starts, 16, 4)
    assert all(cut in chunk_begins(starts, 16) for cut in cuts)
    rings = [plan_ring(chunk_begins(starts, 16), cuts, rank, 4, torch.device("cpu")) for rank in range(4)]
    assert rings == [None] * 4  # local layers pass nothing on
    assert plan_ring(starts, cuts, 0, 4, torch.device("cpu")) is not None


def test_one_long_document_is_the_same_work_for_every_rank() -> None:
    starts, ranks = [0, 1024], 4
    cuts = context_cuts(starts, 64, ranks)
    work = []
    for rank in range(ranks):
        ring = plan_ring(starts, cuts, rank, ranks, torch.device("cpu"))
        assert ring is not None
        seen = [sum(ring.tails[owner][which] for owner, which in tails) for tails in ring.needs]
        rows = ring.heads if len(ring.heads) == 2 else (0, *ring.heads)
        before = seen if len(seen) == 2 else [0, *seen]
        work.append(sum(r * b for r, b in zip(rows, before, strict=True)))
    assert len(set(work)) == 1


def test_a_product_that_is_not_the_number_of_processes_is_refused_with_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HerdError, match=r"expert 2 x context 3 x tensor 1 = 6 ranks, but one process was started"):
        start(ParallelConfig(expert=2, context=3))
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(HerdError, match=r"= 2 ranks, but 4 processes were started"):
        start(ParallelConfig(expert=2))
    with pytest.raises(HerdError, match="tensor=0"):
        ParallelConfig(tensor=0)


def test_degrees_that_do_not_divide_the_model_are_refused() -> None:
    for sizes, words in ({"tensor": 3}, "num_kv_heads=2"), ({"expert": 5}, "num_experts=4"):
        with pytest.raises(HerdError, match=words):
            Parallel(Seat(sizes, {})).apply(small_model())


def test_a_world_of_one_leaves_the_model_as_it_is() -> None:
    model, batches = small_model(), RandomBatches()
    before = [(name, type(module), len(module._forward_hooks)) for name, module in model.named_modules()]
    ALONE.apply(model)
    assert [(name, type(module), len(module._forward_hooks)) for name, module in model.named_modules()] == before
    assert ALONE.share(batches, 16) is batches


@pytest.fixture(scope="module")
def stored_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a folder, in fp32."""
    folder = tmp_path_factory.mktemp("stored")
    huggingface.save(small_model(), folder, dtype=torch.float32)
    huggingface.save_processor(SHAPE, folder)
    return folder


def test_a_rank_reads_its_own_experts_and_heads_and_nothing_else(stored_model: Path) -> None:
    ranks = [loaded(seat, stored_model) for seat in seats(expert=4)]
    assert all(rank["same"] and rank["read"] == rank["own"] for rank in ranks)
    whole = loaded(Seat({}, {}), stored_model)
    experts = sum(p.numel() * 4 for name, p in small_model().named_parameters() if name.endswith(("EDF", "EFD")))
    assert whole["read"] == whole["own"]
    assert [whole["read"] - rank["read"] for rank in ranks] == [experts * 3 // 4] * 4
    # A row that is cut across is read whole where its part is shorter than a page, a few rows at a time.
    cut = [loaded(seat, stored_model) for seat in seats(expert=2, tensor=2)]
    assert all(rank["same"] and rank["own"] <= rank["read"] < whole["read"] for rank in cut)


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).abs().max() <= 5e-6 * value.abs().max() + 1e-9, name


def test_every_axis_gives_the_loss_and_the_gradients_of_one_rank(tmp_path: Path, stored_model: Path) -> None:
    """Also with a rank that has no documents, three ranks, pictures that are cut, experts without rows; and what one
    mesh saves another loads, and each rank reads of a folder its own part."""
    few, long, seen = RandomBatches(lengths=(3, 2)), RandomBatches(lengths=(121,)), RandomBatches(pictures=True)
    skewed = replace(SHAPE, moe=MoEConfig(num_experts=8, ffn_dim=32, every=2))
    lora = LoraConfig(rank=3, alpha=3.0)
    cases: Sequence[tuple[dict[str, int], RandomBatches, Any, LoraConfig | None]] = [
        ({"replicate": 2}, seen, SHAPE, None),
        ({"shard": 2}, RandomBatches(), SHAPE, None),
        ({"tensor": 2}, RandomBatches(), SHAPE, None),
        ({"context": 2}, seen, SHAPE, None),
        ({"shard": 3}, few, SHAPE, None),
        ({"expert": 3}, few, skewed, None),
        ({"context": 3}, long, SHAPE, None),
        ({"replicate": 2}, RandomBatches(), SHAPE, lora),
        ({"shard": 2}, RandomBatches(), SHAPE, lora),
        ({"expert": 3}, few, skewed, lora),
        ({"tensor": 2}, RandomBatches(), SHAPE, lora),
    ]
    mixture = replace(SHAPE, moe=MoEConfig(num_experts=5, ffn_dim=48, every=1))
    meshes = [ParallelConfig(**sizes) for sizes, *_ in cases]
    found = on_ranks(
        *[(mesh.world, gradients, (mesh, *case[1:])) for mesh, case in zip(meshes, cases, strict=True)],
        (3, rows_of_experts, (ParallelConfig(expert=3), mixture)),
        (2, hidden_states, (ParallelConfig(expert=2), seen)),
        (2, saved, (ParallelConfig(tensor=2), tmp_path)),
        (3, resharded, (ParallelConfig(shard=3), tmp_path)),
        (2, adapters_read, (ParallelConfig(shard=2), stored_model)),
        (2, loaded_on, (ParallelConfig(shard=2), stored_model)),
        (2, loaded_on, (ParallelConfig(tensor=2), stored_model)),
    )
    for (_, *case), ranks in zip(cases, found, strict=False):
        wanted = gradients(ParallelConfig(), *case)
        for rank in ranks:
            close(rank, wanted)
    *_, rows, hidden, _, again, begun, sharded, cut = found
    assert torch.equal(torch.cat(rows), rows_of_experts(ParallelConfig(), mixture)), "bitwise"
    if native.why_not() is None:  # else a row's rounding depends on how many there are
        assert torch.equal(torch.cat(hidden), hidden_states(ParallelConfig(), seen)), "bitwise, the whole model in bf16"
    for name, parameter in small_model().named_parameters():
        assert torch.equal(again[0][name], parameter), name
    for name, value in begun[0].items():
        assert name == "read" or torch.equal(value, torch.arange(value.numel()).view(value.shape)), name
    assert [rank["read"] for rank in begun] == [rank["own"] for rank in sharded], "of the base its own part"
    one = float(gradients(ParallelConfig(), RandomBatches())["loss"])
    for rank in (*sharded, *cut):
        assert rank["same"] and rank["loss"] == pytest.approx(one, rel=1e-5)
    assert all(rank["read"] == rank["own"] for rank in sharded)


def test_a_fused_matrix_is_split_part_by_part() -> None:
    [one, other] = seats(tensor=2)
    split = Split(axis="tensor", dim=0, parts=(4, 2, 2))
    rows = torch.arange(8)
    assert split.take(rows, one).tolist() == [0, 1, 4, 6] and split.take(rows, other).tolist() == [2, 3, 5, 7]
    layout = Layout(mesh=other, shape=(8,), splits=(split,), partial=())
    assert [box for box, _ in layout.boxes()] == [((2, 4),), ((5, 6),), ((7, 8),)]


@pytest.mark.slow
def test_fifty_steps_on_any_mesh_have_the_losses_of_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    scaling(steps=50, as_json=True)
    rows = json.loads(capsys.readouterr().out)["rows"]
    apart = [row["ours"] for row in rows if row["case"].endswith("adamw")]
    assert len(apart) == len(MESHES) and max(apart) <= BOUND
